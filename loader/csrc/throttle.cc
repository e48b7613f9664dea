#include "throttle.h"

#include <algorithm>

namespace serverless_triton::loader {

std::uint64_t Throttle::slice_of(std::uint64_t bytes) const {
    return is_limited() ? std::min(bytes, std::max<std::uint64_t>(1, bytes_per_second_ / 50)) : bytes;
}

Throttle::Clock::time_point Throttle::reserve(std::uint64_t bytes, Clock::time_point start) {
    if (!is_limited()) {
        return start;
    }
    const std::chrono::duration<double> duration(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
    const std::lock_guard lock(mutex_);
    free_at_ = std::max(free_at_, start) + std::chrono::duration_cast<Clock::duration>(duration);
    return free_at_;
}

}  // namespace serverless_triton::loader
