// A bandwidth limit shared by all who read through it: nodes that share one machine each get an SSD of their own speed.
// reserve() may be called from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

namespace serverless_triton::loader {

class Throttle {
  public:
    using Clock = std::chrono::steady_clock;

    // 0 means unlimited.
    explicit Throttle(std::uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

    [[nodiscard]] bool is_limited() const { return bytes_per_second_ != 0; }
    [[nodiscard]] std::uint64_t bytes_per_second() const { return bytes_per_second_; }

    // How much of a longer transfer to book at once: what takes 20 ms at the limited speed.
    [[nodiscard]] std::uint64_t slice_of(std::uint64_t bytes) const;

    // Books a transfer of `bytes` that starts at `start` or when the one before it ends; returns when it would be
    // complete at the limited speed. Time that nobody booked is lost, so there are no bursts.
    [[nodiscard]] Clock::time_point reserve(std::uint64_t bytes, Clock::time_point start);

  private:
    const std::uint64_t bytes_per_second_;
    std::mutex mutex_;
    Clock::time_point free_at_{};
};

}  // namespace serverless_triton::loader
