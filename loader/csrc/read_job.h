// The handle of one long piece of work on files: any thread may cancel it or look at its progress meanwhile.
#pragma once

#include <atomic>
#include <cstdint>

#include "errors.h"

namespace serverless_triton::loader {

class ReadJob {
  public:
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
    [[nodiscard]] bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
    [[nodiscard]] std::uint64_t bytes_done() const { return bytes_done_.load(std::memory_order_relaxed); }
    void add_done(std::uint64_t bytes) { bytes_done_.fetch_add(bytes, std::memory_order_relaxed); }

    // Throws ReadCancelled after cancel().
    void stop_if_cancelled() const {
        if (is_cancelled())
            throw ReadCancelled("the load was cancelled; load it again if it is still wanted");
    }

  private:
    std::atomic<bool> cancelled_{false};
    std::atomic<std::uint64_t> bytes_done_{0};
};

}  // namespace serverless_triton::loader
