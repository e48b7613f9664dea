#include "reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "errors.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace serverless_triton::loader {
namespace {

// How long a throttled thread may sleep before it looks for a cancellation again.
constexpr std::chrono::milliseconds kCancelPoll{10};

struct Chunk {
    const FileImage* file;
    std::uint64_t offset;
    std::uint64_t length;              // bytes of the file
    std::span<std::byte> destination;  // length rounded up to the alignment
};

std::uint64_t rounded_up(std::uint64_t bytes) {
    return (bytes + kAlignmentBytes - 1) & ~(kAlignmentBytes - 1);
}

void check_destination(const Transfer& transfer) {
    const bool fits = transfer.destination.size() >= rounded_up(transfer.file->bytes());
    const bool aligned = reinterpret_cast<std::uintptr_t>(transfer.destination.data()) % kAlignmentBytes == 0;
    if (!fits || !aligned)
        throw std::invalid_argument("the memory for " + transfer.file->path() + " is too small or unaligned");
}

std::vector<Chunk> cut(std::span<const Transfer> transfers, std::uint64_t chunk_bytes) {
    std::vector<Chunk> chunks;
    for (const Transfer& transfer : transfers) {
        check_destination(transfer);
        for (std::uint64_t offset = 0; offset < transfer.file->bytes(); offset += chunk_bytes) {
            const std::uint64_t length = std::min(chunk_bytes, transfer.file->bytes() - offset);
            chunks.push_back({transfer.file, offset, length, transfer.destination.subspan(offset, rounded_up(length))});
        }
    }
    return chunks;
}

// Direct reads fault fresh pages in one at a time; taking them in bulk is faster and turns a lack of memory into an
// error here instead of a signal later. Kernels before 5.14 refuse with EINVAL: then the read itself faults them in.
void populate(std::span<std::byte> memory) {
    if (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0 || errno == EINVAL)
        return;
    throw OutOfMemory("no memory for another " + std::to_string(memory.size()) +
                      " bytes of an image; free memory or lower the store's DRAM budget");
}

// The threads of one read(): they take chunks in order until none is left, one failed, or the job was cancelled.
class Pool {
  public:
    Pool(std::vector<Chunk> chunks, Throttle& throttle, ReadJob& job)
        : chunks_(std::move(chunks)), throttle_(throttle), job_(job) {}

    ReadReport run(unsigned threads) {
        {
            std::vector<std::jthread> workers;
            const auto useful = std::min<std::size_t>(threads, chunks_.size());
            for (std::size_t i = 1; i < useful; ++i)
                workers.emplace_back([this] { work(); });
            work();
        }
        if (failure_)
            std::rethrow_exception(failure_);
        return {disk_bytes_, page_cache_bytes_, direct_bytes_};
    }

  private:
    void work() noexcept {
        try {
            for (std::size_t i = next_++; i < chunks_.size() && !stopped_; i = next_++)
                take(chunks_[i]);
        } catch (...) {
            const std::lock_guard lock(failure_mutex_);
            if (!failure_)
                failure_ = std::current_exception();
            stopped_ = true;
        }
    }

    void take(const Chunk& chunk) {
        stop_if_cancelled();
        populate(chunk.destination);
        const auto began_at = Throttle::Clock::now();
        fetch(chunk);
        pay(chunk.length, began_at);
    }

    // Waits until the bytes would have arrived at the limited speed, a slice at a time: what a cancelled read has
    // booked ahead is time that the next one has to wait.
    void pay(std::uint64_t bytes, Throttle::Clock::time_point began_at) {
        while (bytes > 0) {
            const std::uint64_t slice = throttle_.slice_of(bytes);
            wait_until(throttle_.reserve(slice, began_at));
            job_.add_done(slice);
            bytes -= slice;
        }
    }

    void fetch(const Chunk& chunk) {
        const bool cached = !throttle_.is_limited() && chunk.file->is_resident(chunk.offset, chunk.length);
        (cached ? page_cache_bytes_ : disk_bytes_) += chunk.length;
        if (!cached && chunk.file->supports_direct() &&
            chunk.file->read_direct(chunk.offset, chunk.destination, chunk.length)) {
            direct_bytes_ += chunk.length;
            return;
        }
        chunk.file->read(chunk.offset, chunk.destination.first(chunk.length));
    }

    void wait_until(Throttle::Clock::time_point complete_at) {
        for (auto now = Throttle::Clock::now(); now < complete_at; now = Throttle::Clock::now()) {
            stop_if_cancelled();
            std::this_thread::sleep_for(std::min<Throttle::Clock::duration>(complete_at - now, kCancelPoll));
        }
    }

    void stop_if_cancelled() const {
        if (job_.is_cancelled())
            throw ReadCancelled("the load was cancelled; load it again if it is still wanted");
    }

    const std::vector<Chunk> chunks_;
    Throttle& throttle_;
    ReadJob& job_;
    std::atomic<std::size_t> next_{0};
    std::atomic<bool> stopped_{false};
    std::atomic<std::uint64_t> disk_bytes_{0};
    std::atomic<std::uint64_t> page_cache_bytes_{0};
    std::atomic<std::uint64_t> direct_bytes_{0};
    std::mutex failure_mutex_;
    std::exception_ptr failure_;
};

}  // namespace

Reader::Reader(unsigned threads, std::uint64_t chunk_bytes, std::uint64_t bytes_per_second)
    : threads_(threads), chunk_bytes_(chunk_bytes), throttle_(bytes_per_second) {
    if (threads == 0)
        throw std::invalid_argument("a reader needs at least one thread");
    if (chunk_bytes == 0 || chunk_bytes % kAlignmentBytes != 0) {
        throw std::invalid_argument("chunk_bytes must be a positive multiple of " + std::to_string(kAlignmentBytes));
    }
}

ReadReport Reader::read(std::span<const Transfer> transfers, ReadJob& job) {
    return Pool(cut(transfers, chunk_bytes_), throttle_, job).run(threads_);
}

}  // namespace serverless_triton::loader
