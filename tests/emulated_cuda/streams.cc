// The emulated driver's streams, events and copies: one thread a stream does them in order and late.
#include <cstring>
#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "machine.h"

namespace emulated_cuda {

namespace {

struct Event {
    std::uint64_t recorded = 0;  // how often it was recorded
    std::uint64_t reached = 0;   // the last record that its stream has passed
};
using EventHandle = std::shared_ptr<Event>*;  // records under way hold the event, too

class Stream {
  public:
    Stream() : thread_([this] { run(); }) {}
    ~Stream() {
        {
            const std::lock_guard lock(mutex_);
            is_closing_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void push(std::function<void()> task) {
        {
            const std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        changed_.notify_all();
    }
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return tasks_.empty(); });
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return is_closing_ || !tasks_.empty(); });
            if (tasks_.empty())
                return;
            const std::function<void()> task = tasks_.front();
            lock.unlock();
            task();
            lock.lock();
            tasks_.pop_front();
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> tasks_;
    bool is_closing_ = false;
    std::thread thread_;
};

Result check_copy(Address target, const void* source, std::uint64_t bytes) {
    const Reservation* reservation = reservation_of(target, bytes);
    if (reservation == nullptr || !reservation->mapped || !reservation->writable)
        return kIllegalAddress;
    return is_pinned(reinterpret_cast<Address>(source), bytes) ? kSuccess : kIllegalAddress;
}

// On the stream's thread. What it copies from or to may have gone meanwhile, which only the lock keeps from happening
// during the copy itself.
void copy_late(Address target, const void* source, std::uint64_t bytes) {
    std::this_thread::sleep_for(machine().copy_delay);
    const std::lock_guard lock(machine().mutex);
    Result result = injected("copy").value_or(kSuccess);
    if (result == kSuccess)
        result = check_copy(target, source, bytes);
    if (result == kSuccess) {
        std::memcpy(reinterpret_cast<void*>(target), source, bytes);
        machine().copy_log << bytes << std::endl;
    } else if (machine().sticky == kSuccess) {
        machine().sticky = result;
    }
}

Result sticky() {
    const std::lock_guard lock(machine().mutex);
    return machine().sticky;
}

}  // namespace

EXPORTED Result cuStreamCreate(Stream** stream, unsigned) {
    return call("cuStreamCreate", true, [&] {
        *stream = new Stream;
        return kSuccess;
    });
}

EXPORTED Result cuStreamDestroy_v2(Stream* stream) {
    // As on a real GPU, what is under way is neither waited for nor dropped.
    std::thread([stream] { delete stream; }).detach();
    return kSuccess;
}

EXPORTED Result cuStreamSynchronize(Stream* stream) {
    const Result result = call("cuStreamSynchronize", true, [] { return kSuccess; });
    stream->wait();
    return result == kSuccess ? sticky() : result;
}

EXPORTED Result cuEventCreate(EventHandle* event, unsigned) {
    return call("cuEventCreate", true, [&] {
        *event = new std::shared_ptr<Event>(std::make_shared<Event>());
        return kSuccess;
    });
}

EXPORTED Result cuEventDestroy_v2(EventHandle event) {
    delete event;
    return kSuccess;
}

EXPORTED Result cuEventRecord(EventHandle handle, Stream* stream) {
    return call("cuEventRecord", true, [&] {
        const std::shared_ptr<Event> event = *handle;
        const std::uint64_t record = ++event->recorded;
        stream->push([event, record] {
            const std::lock_guard lock(machine().mutex);
            event->reached = record;
            machine().changed.notify_all();
        });
        return kSuccess;
    });
}

EXPORTED Result cuEventSynchronize(EventHandle handle) {
    const Result result = call("cuEventSynchronize", true, [] { return kSuccess; });
    const std::shared_ptr<Event> event = *handle;
    std::unique_lock lock(machine().mutex);
    machine().changed.wait(lock, [&event] { return event->reached == event->recorded; });
    return result == kSuccess ? machine().sticky : result;
}

EXPORTED Result cuMemcpyHtoDAsync_v2(Address target, const void* source, std::size_t bytes, Stream* stream) {
    return call("cuMemcpyHtoDAsync", true, [&] {
        if (check_copy(target, source, bytes) != kSuccess)
            return kInvalidValue;
        stream->push([=] { copy_late(target, source, bytes); });
        return kSuccess;
    });
}

EXPORTED Result cuMemcpyDtoH_v2(void* target, Address source, std::size_t bytes) {
    return call("cuMemcpyDtoH", true, [&] {
        const Reservation* reservation = reservation_of(source, bytes);
        if (reservation == nullptr || !reservation->mapped || !reservation->readable)
            return kInvalidValue;
        std::memcpy(target, reinterpret_cast<const void*>(source), bytes);
        return kSuccess;
    });
}

}  // namespace emulated_cuda
