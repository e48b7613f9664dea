// Threads that share a numbered list of tasks for the length of one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace serverless_triton::loader {

// Calls work(next) on up to `threads` threads, the caller's own among them; next() gives each thread the index of its
// next task, in order, and `tasks` once none is left or a thread has thrown. Returns when all threads are done, then
// rethrows the first failure.
template <typename Work>
void share_tasks(unsigned threads, std::size_t tasks, const Work& work) {
    std::atomic<std::size_t> taken{0};
    std::atomic<bool> stopped{false};
    std::mutex failure_mutex;
    std::exception_ptr failure;
    const auto next = [&] { return stopped ? tasks : std::min(taken++, tasks); };
    const auto run = [&]() noexcept {
        try {
            work(next);
        } catch (...) {
            const std::lock_guard lock(failure_mutex);
            if (!failure)
                failure = std::current_exception();
            stopped = true;
        }
    };
    {
        std::vector<std::jthread> helpers;
        for (std::size_t i = 1; i < std::min<std::size_t>(threads, tasks); ++i)
            helpers.emplace_back(run);
        run();
    }
    if (failure)
        std::rethrow_exception(failure);
}

}  // namespace serverless_triton::loader
