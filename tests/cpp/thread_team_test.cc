#include "thread_team.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

struct Counted {
    explicit Counted(std::size_t tasks) : times(tasks) {}
    std::vector<std::atomic<int>> times;

    static void count(const void* context, std::size_t index) noexcept {
        ++const_cast<Counted*>(static_cast<const Counted*>(context))->times[index];
    }
    bool is_each_done_once() const {
        for (const auto& time : times)
            if (time != 1)
                return false;
        return true;
    }
};

bool shared_once(unsigned threads, std::size_t tasks) {
    const Counted counted(tasks);
    share_with_team(threads, tasks, &Counted::count, &counted);
    return counted.is_each_done_once();
}

void every_task_is_done_once() {
    for (const unsigned threads : {0U, 1U, 2U, 4U, 3U})
        for (const std::size_t tasks : {0UL, 1UL, 2UL, 5UL, 1000UL})
            CHECK(shared_once(threads, tasks));
}

void calls_follow_each_other_at_once() {
    for (int call = 0; call < 5'000; ++call)
        CHECK(shared_once(3, 4));
}

void threads_may_call_side_by_side() {
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&wrong] {
            for (int call = 0; call < 500; ++call)
                wrong += !shared_once(2, 8);
        });
    for (std::thread& caller : callers)
        caller.join();
    CHECK(wrong == 0);
}

#ifndef __SANITIZE_THREAD__
// A child has none of its parent's helpers, however its parent's stood when it was forked.
void a_forked_child_has_a_team_of_its_own() {
    CHECK(shared_once(2, 8));
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
        ::alarm(30);  // a child that waits for helpers which it does not have ends by it
        ::_exit(shared_once(2, 8) && shared_once(2, 100) ? 0 : 1);
    }
    int status = -1;
    CHECK(::waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(shared_once(2, 8));
}
#endif

}  // namespace

int main() {
    every_task_is_done_once();
    calls_follow_each_other_at_once();
    threads_may_call_side_by_side();
#ifndef __SANITIZE_THREAD__  // it follows no threads into a forked child
    a_forked_child_has_a_team_of_its_own();
#endif
}
