// The handle of one long piece of work on files. Any thread may cancel, pause or resume it, or look at its progress,
// while others do the work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "errors.h"

namespace serverless_triton::loader {

class ReadJob {
  public:
    // For good: a job can't be used again. A paused job ends too.
    void cancel() {
        change([this] { cancelled_ = true; });
    }

    // The work stops once what it has begun (a chunk, say) is done, and goes on after resume(). Asking twice changes
    // nothing. Both return at once.
    void pause() {
        change([this] { paused_ = true; });
    }
    void resume() {
        change([this] { paused_ = false; });
    }

    [[nodiscard]] bool is_cancelled() const { return cancelled_; }
    [[nodiscard]] bool is_paused() const { return paused_; }
    [[nodiscard]] std::uint64_t bytes_done() const { return bytes_done_.load(std::memory_order_relaxed); }
    void add_done(std::uint64_t bytes) { bytes_done_.fetch_add(bytes, std::memory_order_relaxed); }

    // Throws ReadCancelled after cancel(); never blocks.
    void stop_if_cancelled() const {
        if (is_cancelled())
            throw ReadCancelled("the load was cancelled; load it again if it is still wanted");
    }

    // What the work calls between two steps: blocks while the job is paused, throws ReadCancelled after cancel().
    void proceed() {
        if (is_paused()) {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return cancelled_ || !paused_; });
        }
        stop_if_cancelled();
    }

  private:
    template <typename Change>
    void change(const Change& apply) {
        {
            const std::lock_guard lock(mutex_);
            apply();
        }
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<bool> cancelled_{false};
    std::atomic<bool> paused_{false};
    std::atomic<std::uint64_t> bytes_done_{0};
};

}  // namespace serverless_triton::loader
