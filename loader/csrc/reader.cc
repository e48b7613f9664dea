#include "reader.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "chunk_hasher.h"
#include "chunk_pump.h"

namespace serverless_triton::loader {
namespace {

// Of each thread, where chunks have a place to go and need no memory of their own. Measured in docs/architecture.md.
constexpr unsigned kChunksInFlight = 8;

// How long a throttled thread may sleep before it looks for a cancellation again.
constexpr std::chrono::milliseconds kCancelPoll{10};

void check_pieces(const Transfer& transfer, std::uint64_t chunk_bytes) {
    std::uint64_t room = 0;
    for (const std::span<std::byte>& piece : transfer.pieces) {
        const bool whole_chunks = piece.size() % chunk_bytes == 0 || &piece == &transfer.pieces.back();
        if (!whole_chunks || reinterpret_cast<std::uintptr_t>(piece.data()) % kAlignmentBytes != 0)
            throw std::invalid_argument("a piece of memory for " + transfer.file->path() + " is unaligned");
        room += piece.size();
    }
    if (room < padded(transfer.file->bytes()))
        throw std::invalid_argument("the memory for " + transfer.file->path() + " is too small");
}

// Gives every chunk its place in the pieces; both are in file order.
void place(std::span<Chunk> chunks, std::span<const std::span<std::byte>> pieces) {
    std::uint64_t piece_begin = 0;
    for (Chunk& chunk : chunks) {
        for (; chunk.offset >= piece_begin + pieces.front().size(); pieces = pieces.subspan(1))
            piece_begin += pieces.front().size();
        chunk.destination = pieces.front().subspan(chunk.offset - piece_begin, padded(chunk.length));
    }
}

std::vector<Chunk> chunks_of(std::span<const Transfer> transfers, std::uint64_t chunk_bytes) {
    std::vector<Chunk> all;
    for (std::size_t i = 0; i < transfers.size(); ++i) {
        const Transfer& transfer = transfers[i];
        check_pieces(transfer, chunk_bytes);
        std::vector<Chunk> chunks = cut(*transfer.file, transfer.hashes, chunk_bytes, transfer.ranges);
        place(chunks, transfer.pieces);
        for (Chunk& chunk : chunks) {
            chunk.file_index = i;
            all.push_back(chunk);
        }
    }
    return all;
}

std::uint64_t end_of(const StridedCopy& copy) {
    return copy.begin + copy.rows * copy.row_bytes;
}

// In file order, checked, without those that take nothing.
std::vector<StridedCopy> sorted_copies(const Gathering& gathering) {
    std::vector<StridedCopy> copies = gathering.copies;
    std::erase_if(copies, [](const StridedCopy& copy) { return target_bytes(copy) == 0; });
    std::ranges::sort(copies, {}, &StridedCopy::begin);
    std::uint64_t end = 0;
    for (const StridedCopy& copy : copies) {
        check_copy(copy, gathering.file->bytes());
        if (copy.begin < end)
            throw std::invalid_argument("two copies share bytes of " + gathering.file->path());
        end = end_of(copy);
    }
    return copies;
}

std::vector<ByteRange> ranges_of(std::span<const StridedCopy> copies) {
    std::vector<ByteRange> all;
    for (const StridedCopy& copy : copies) {
        const std::vector<ByteRange> ranges = ranges_of(copy);
        all.insert(all.end(), ranges.begin(), ranges.end());
    }
    return all;
}

// What the threads of one read() or gather() do with a chunk, and the sums that they keep together.
class Intake {
  public:
    Intake(Throttle& throttle, ReadJob& job) : throttle_(throttle), job_(job) {}

    void take(const FetchedChunk& fetched) {
        count(fetched);
        check_chunk(fetched);
        pay(fetched.chunk->length, fetched.began_at);
    }

    [[nodiscard]] ReadReport report() const { return {disk_bytes_, page_cache_bytes_, direct_bytes_, uring_bytes_}; }

  private:
    void count(const FetchedChunk& fetched) {
        const std::uint64_t bytes = fetched.chunk->length;
        (fetched.source == Source::kPageCache ? page_cache_bytes_ : disk_bytes_) += bytes;
        direct_bytes_ += fetched.is_direct ? bytes : 0;
        uring_bytes_ += fetched.is_by_uring ? bytes : 0;
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

    void wait_until(Throttle::Clock::time_point complete_at) const {
        for (auto now = Throttle::Clock::now(); now < complete_at; now = Throttle::Clock::now()) {
            job_.stop_if_cancelled();
            std::this_thread::sleep_for(std::min<Throttle::Clock::duration>(complete_at - now, kCancelPoll));
        }
    }

    Throttle& throttle_;
    ReadJob& job_;
    std::atomic<std::uint64_t> disk_bytes_{0};
    std::atomic<std::uint64_t> page_cache_bytes_{0};
    std::atomic<std::uint64_t> direct_bytes_{0};
    std::atomic<std::uint64_t> uring_bytes_{0};
};

}  // namespace

Reader::Reader(unsigned threads, std::uint64_t chunk_bytes, std::uint64_t bytes_per_second, std::string_view engine)
    : threads_(threads), chunk_bytes_(chunk_bytes), engine_(choose_engine(engine)), throttle_(bytes_per_second) {
    if (threads == 0)
        throw std::invalid_argument("a reader needs at least one thread");
    if (chunk_bytes == 0 || chunk_bytes % kAlignmentBytes != 0) {
        throw std::invalid_argument("chunk_bytes must be a positive multiple of " + std::to_string(kAlignmentBytes));
    }
}

ReadReport Reader::read(std::span<const Transfer> transfers, ReadJob& job, ChunkSink* sink) {
    const std::vector<Chunk> chunks = chunks_of(transfers, chunk_bytes_);
    Intake intake(throttle_, job);
    FetchOptions options = fetch_options();
    options.chunks_in_flight = kChunksInFlight;
    options.chunks_begun = 2 * kChunksInFlight;
    pump_chunks(threads_, options, chunks, job, [&](const FetchedChunk& fetched) {
        intake.take(fetched);
        const Chunk& chunk = *fetched.chunk;
        if (sink != nullptr)
            sink->chunk_ready(chunk.file_index, chunk.offset, chunk.length, fetched.bytes.data());
    });
    return intake.report();
}

ReadReport Reader::gather(std::span<const Gathering> gatherings, ReadJob& job) {
    Intake intake(throttle_, job);
    for (const Gathering& gathering : gatherings) {
        const std::vector<StridedCopy> copies = sorted_copies(gathering);
        const std::vector<Chunk> chunks = cut(*gathering.file, gathering.hashes, chunk_bytes_, ranges_of(copies));
        pump_chunks(threads_, fetch_options(), chunks, job, [&](const FetchedChunk& fetched) {
            intake.take(fetched);
            const std::uint64_t begin = fetched.chunk->offset;
            const auto is_past = [begin](const StridedCopy& copy) { return end_of(copy) <= begin; };
            auto copy = std::ranges::partition_point(copies, is_past);
            for (; copy != copies.end() && copy->begin < begin + fetched.bytes.size(); ++copy)
                copy_columns(*copy, begin, fetched.bytes);
        });
    }
    return intake.report();
}

FetchOptions Reader::fetch_options() const {
    return {.engine = engine_, .use_page_cache = !throttle_.is_limited(), .chunk_bytes = chunk_bytes_};
}

}  // namespace serverless_triton::loader
