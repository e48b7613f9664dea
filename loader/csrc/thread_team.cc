#include "thread_team.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace serverless_triton::loader {
namespace {

struct Call {
    std::size_t tasks;
    Task task;
    const void* context;
    std::atomic<std::size_t> taken{0};

    void work() noexcept {
        for (std::size_t index = taken++; index < tasks; index = taken++)
            task(context, index);
    }
};

// All signals go to threads that were there before.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

class Team {
  public:
    pid_t process() const { return process_; }

    // False where another call has the helpers, or there can be none.
    bool share(unsigned helpers, Call& call) {
        const std::unique_lock busy(busy_, std::try_to_lock);
        if (!busy || !start(helpers))
            return false;
        {
            const std::lock_guard lock(mutex_);
            call_ = &call;
            places_ = helpers;
            ++number_;
        }
        wanted_.notify_all();
        call.work();
        std::unique_lock lock(mutex_);
        call_ = nullptr;
        done_.wait(lock, [this] { return working_ == 0; });
        return true;
    }

  private:
    bool start(unsigned helpers) {
        const SignalsBlocked blocked;
        try {
            for (; helpers_ < helpers; ++helpers_)
                std::thread([this] { help(); }).detach();
        } catch (const std::system_error&) {
            return helpers_ > 0;
        }
        return true;
    }

    void help() noexcept {
        std::uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        for (;;) {
            wanted_.wait(lock, [&] { return number_ != seen; });
            seen = number_;
            Call* const call = call_;
            if (call == nullptr || places_ == 0)
                continue;
            --places_;
            ++working_;
            lock.unlock();
            call->work();
            lock.lock();
            if (--working_ == 0)
                done_.notify_one();
        }
    }

    const pid_t process_ = ::getpid();
    std::mutex busy_;
    unsigned helpers_ = 0;

    std::mutex mutex_;  // of all below
    std::condition_variable wanted_, done_;
    Call* call_ = nullptr;
    unsigned places_ = 0, working_ = 0;
    std::uint64_t number_ = 0;
};

// Never destroyed: its helpers may outlive main(), and a parent's means nothing to a forked child.
Team& team_of_this_process() {
    static std::atomic<Team*> current{nullptr};
    Team* team = current.load();
    while (team == nullptr || team->process() != ::getpid()) {
        Team* const fresh = new Team;  // NOLINT: see above
        if (current.compare_exchange_strong(team, fresh))
            return *fresh;
        delete fresh;
    }
    return *team;
}

}  // namespace

void share_with_team(unsigned threads, std::size_t tasks, Task task, const void* context) {
    Call call{tasks, task, context};
    const auto helpers = static_cast<unsigned>(std::min<std::size_t>(threads, tasks));
    if (helpers <= 1 || !team_of_this_process().share(helpers - 1, call))
        call.work();
}

}  // namespace serverless_triton::loader
