#include "reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "errors.h"
#include "workers.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace serverless_triton::loader {
namespace {

// How long a throttled thread may sleep before it looks for a cancellation again.
constexpr std::chrono::milliseconds kCancelPoll{10};

struct Chunk {
    const FileImage* file;
    std::size_t file_index;
    std::uint64_t offset;
    std::uint64_t length;              // bytes of the file
    std::span<std::byte> destination;  // length rounded up to the alignment
    const Digest* hash;                // null where the bytes are taken as they come
};

std::uint64_t rounded_up(std::uint64_t bytes) {
    return (bytes + kAlignmentBytes - 1) & ~(kAlignmentBytes - 1);
}

void check_pieces(const Transfer& transfer, std::uint64_t chunk_bytes) {
    std::uint64_t room = 0;
    for (const std::span<std::byte>& piece : transfer.pieces) {
        const bool whole_chunks = piece.size() % chunk_bytes == 0 || &piece == &transfer.pieces.back();
        if (!whole_chunks || reinterpret_cast<std::uintptr_t>(piece.data()) % kAlignmentBytes != 0)
            throw std::invalid_argument("a piece of memory for " + transfer.file->path() + " is unaligned");
        room += piece.size();
    }
    if (room < rounded_up(transfer.file->bytes()))
        throw std::invalid_argument("the memory for " + transfer.file->path() + " is too small");
}

void check_hashes(const Transfer& transfer, std::uint64_t chunk_bytes) {
    if (!transfer.hashes.empty() && transfer.hashes.size() != chunks_in(transfer.file->bytes(), chunk_bytes))
        throw std::invalid_argument("one hash is needed for each chunk of " + transfer.file->path());
}

// Where the chunks of a file go, one after the other.
class Pieces {
  public:
    explicit Pieces(const Transfer& transfer) : pieces_(transfer.pieces) {}

    std::span<std::byte> next(std::uint64_t bytes) {
        while (pieces_.front().size() == used_) {
            pieces_ = pieces_.subspan(1);
            used_ = 0;
        }
        const std::span<std::byte> taken = pieces_.front().subspan(used_, bytes);
        used_ += bytes;
        return taken;
    }

  private:
    std::span<const std::span<std::byte>> pieces_;
    std::uint64_t used_ = 0;
};

void append_chunks(std::vector<Chunk>& chunks, const Transfer& transfer, std::size_t index, std::uint64_t chunk_bytes) {
    check_pieces(transfer, chunk_bytes);
    check_hashes(transfer, chunk_bytes);
    Pieces pieces(transfer);
    for (std::uint64_t offset = 0; offset < transfer.file->bytes(); offset += chunk_bytes) {
        const std::uint64_t length = std::min(chunk_bytes, transfer.file->bytes() - offset);
        const Digest* hash = transfer.hashes.empty() ? nullptr : &transfer.hashes[offset / chunk_bytes];
        chunks.push_back({transfer.file, index, offset, length, pieces.next(rounded_up(length)), hash});
    }
}

std::vector<Chunk> cut(std::span<const Transfer> transfers, std::uint64_t chunk_bytes) {
    std::vector<Chunk> chunks;
    for (std::size_t i = 0; i < transfers.size(); ++i)
        append_chunks(chunks, transfers[i], i, chunk_bytes);
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
    Pool(std::span<const Transfer> transfers, std::uint64_t chunk_bytes, Throttle& throttle, ReadJob& job,
         ChunkSink* sink)
        : chunks_(cut(transfers, chunk_bytes)),
          chunk_bytes_(chunk_bytes),
          throttle_(throttle),
          job_(job),
          sink_(sink) {}

    ReadReport run(unsigned threads) {
        share_tasks(threads, chunks_.size(), [this](const auto& next) {
            for (std::size_t i = next(); i < chunks_.size(); i = next())
                take(chunks_[i]);
        });
        return {disk_bytes_, page_cache_bytes_, direct_bytes_};
    }

  private:
    void take(const Chunk& chunk) {
        job_.proceed();
        populate(chunk.destination);
        const auto began_at = Throttle::Clock::now();
        const Source source = fetch(chunk);
        if (chunk.hash != nullptr)
            verify(chunk, source);
        pay(chunk.length, began_at);
        if (sink_ != nullptr)
            sink_->chunk_ready(chunk.file_index, chunk.offset, chunk.length, chunk.destination.data());
    }

    // Waits until the bytes would have arrived at the limited speed, a slice at a time: what a cancelled read has
    // booked ahead is time that the next one has to wait. A paused job books no more.
    void pay(std::uint64_t bytes, Throttle::Clock::time_point began_at) {
        while (bytes > 0) {
            const std::uint64_t slice = throttle_.slice_of(bytes);
            job_.proceed();
            wait_until(throttle_.reserve(slice, began_at));
            job_.add_done(slice);
            bytes -= slice;
        }
    }

    Source fetch(const Chunk& chunk) {
        const bool cached = !throttle_.is_limited() && chunk.file->is_resident(chunk.offset, chunk.length);
        (cached ? page_cache_bytes_ : disk_bytes_) += chunk.length;
        if (!cached && chunk.file->supports_direct() &&
            chunk.file->read_direct(chunk.offset, chunk.destination, chunk.length)) {
            direct_bytes_ += chunk.length;
            return Source::kSsd;
        }
        chunk.file->read(chunk.offset, chunk.destination.first(chunk.length));
        return cached ? Source::kPageCache : Source::kSsd;
    }

    void verify(const Chunk& chunk, Source source) const {
        const std::uint64_t index = chunk.offset / chunk_bytes_;
        check_chunk(*chunk.file, index, chunk.offset, chunk.destination.first(chunk.length), *chunk.hash, source);
    }

    void wait_until(Throttle::Clock::time_point complete_at) {
        for (auto now = Throttle::Clock::now(); now < complete_at; now = Throttle::Clock::now()) {
            job_.stop_if_cancelled();
            std::this_thread::sleep_for(std::min<Throttle::Clock::duration>(complete_at - now, kCancelPoll));
        }
    }

    const std::vector<Chunk> chunks_;
    const std::uint64_t chunk_bytes_;
    Throttle& throttle_;
    ReadJob& job_;
    ChunkSink* const sink_;
    std::atomic<std::uint64_t> disk_bytes_{0};
    std::atomic<std::uint64_t> page_cache_bytes_{0};
    std::atomic<std::uint64_t> direct_bytes_{0};
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

ReadReport Reader::read(std::span<const Transfer> transfers, ReadJob& job, ChunkSink* sink) {
    return Pool(transfers, chunk_bytes_, throttle_, job, sink).run(threads_);
}

}  // namespace serverless_triton::loader
