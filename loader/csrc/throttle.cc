#include "throttle.h"

#include <algorithm>

namespace serverless_triton::loader {

Throttle::Clock::time_point Throttle::reserve(std::uint64_t bytes, Clock::time_point now) {
  if (!is_limited()) return now;
  const std::chrono::duration<double> duration(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
  const std::lock_guard lock(mutex_);
  free_at_ = std::max(free_at_, now) + std::chrono::duration_cast<Clock::duration>(duration);
  return free_at_;
}

}  // namespace serverless_triton::loader
