#include "chunk_fetcher.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "errors.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace serverless_triton::loader {
namespace {

// Measured, with its neighbours, in docs/architecture.md.
constexpr std::uint64_t kRequestBytes = 4 * 1024 * 1024;

// Direct reads fault fresh pages in one at a time; taking them in bulk is faster and turns a lack of memory into an
// error here instead of a signal later. Kernels before 5.14 refuse with EINVAL: then the read itself faults them in.
void populate(std::span<std::byte> memory) {
    if (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0 || errno == EINVAL)
        return;
    throw OutOfMemory("no memory for another " + std::to_string(memory.size()) +
                      " bytes of an image; free memory or lower the store's DRAM budget");
}

bool is_refusal(int error) {
    return error == EINVAL || error == EOPNOTSUPP || error == EINTR || error == EAGAIN;
}

[[noreturn]] void throw_unreadable(const FetchedChunk& fetched, int error) {
    throw CheckpointUnreadable(describe(*fetched.chunk, fetched.source) + ": " + std::strerror(error) +
                               "; check the health of the disk");
}

unsigned requests_for(std::uint64_t bytes) {
    return static_cast<unsigned>((bytes + kRequestBytes - 1) / kRequestBytes);
}

// The whole chunk on the calling thread.
void fetch_at_once(FetchedChunk& fetched, std::span<std::byte> memory) {
    const Chunk& chunk = *fetched.chunk;
    if (fetched.source == Source::kSsd && chunk.file->supports_direct()) {
        const std::int64_t n = chunk.file->read_direct(chunk.offset, memory);
        if (n < 0 && !is_refusal(static_cast<int>(-n)))
            throw_unreadable(fetched, static_cast<int>(-n));
        fetched.is_direct = n >= 0 && static_cast<std::uint64_t>(n) >= chunk.length;
        if (fetched.is_direct)
            return;
    }
    // Also where a direct read ended short: only a buffered one may go on from an unaligned offset.
    const std::int64_t n = chunk.file->read_buffered(chunk.offset, memory.first(chunk.length));
    if (n < 0)
        throw_unreadable(fetched, static_cast<int>(-n));
    if (static_cast<std::uint64_t>(n) < chunk.length)
        throw CheckpointTruncated(describe(chunk, fetched.source) +
                                  ": the file became shorter while it was read; load it again once it is complete");
}

}  // namespace

ChunkFetcher::ChunkFetcher(const FetchOptions& options) : options_(options) {
    const unsigned requests = options.chunks_in_flight * requests_for(options.chunk_bytes);
    if (options.engine == Engine::kUring)
        ring_ = Uring::create(requests);
    // One more is with the caller.
    slots_.resize(ring_ ? options.chunks_begun + 1 : 1);
    requests_.resize(ring_ ? requests : 0);
    for (std::size_t i = 0; i < requests_.size(); ++i)
        free_requests_.push_back(i);
}

bool ChunkFetcher::can_begin() const {
    if (!ring_)
        return is_idle();
    return !is_due_ && incomplete_.empty() && begun_ < options_.chunks_begun &&
           begun_ - complete_.size() < options_.chunks_in_flight;
}

bool ChunkFetcher::is_idle() const {
    return begun_ == 0;
}

bool ChunkFetcher::reads_ahead() const {
    return ring_.has_value();
}

void ChunkFetcher::begin(const Chunk& chunk) {
    assert(can_begin());
    if (!ring_)
        take_back();
    Slot& slot = free_slot();
    const std::span<std::byte> memory = memory_of(slot, chunk);
    populate(memory);
    const auto began_at = std::chrono::steady_clock::now();
    const bool cached = options_.use_page_cache && chunk.file->is_resident(chunk.offset, chunk.length);
    slot.fetched = {.chunk = &chunk,
                    .bytes = memory.first(chunk.length),
                    .source = cached ? Source::kPageCache : Source::kSsd,
                    .began_at = began_at};
    slot.memory = memory;
    slot.error = 0;
    slot.fell_short = false;
    slot.state = Slot::kReading;
    ++begun_;
    if (!cached && ring_ && uring_reads(*chunk.file)) {
        request(slot);
    } else {
        fetch_at_once(slot.fetched, slot.memory);
        complete_.push_front(&slot);
        is_due_ = true;
    }
}

FetchedChunk ChunkFetcher::next() {
    assert(!is_idle());
    while (complete_.empty() && incomplete_.size() < begun_)
        complete(ring_->wait());
    take_in();
    if (complete_.empty())
        read_again();
    take_back();
    is_due_ = false;
    handed_out_ = complete_.front();
    complete_.pop_front();
    handed_out_->state = Slot::kHandedOut;
    --begun_;
    return handed_out_->fetched;
}

// All that is there by now makes room for as much at the disk.
void ChunkFetcher::take_in() {
    while (ring_) {
        const auto completion = ring_->poll();
        if (!completion)
            return;
        complete(*completion);
    }
}

// The caller is done with the bytes that next() gave it last.
void ChunkFetcher::take_back() {
    if (handed_out_ != nullptr)
        handed_out_->state = Slot::kFree;
    handed_out_ = nullptr;
}

ChunkFetcher::Slot& ChunkFetcher::free_slot() {
    return *std::ranges::find_if(slots_, [](const Slot& slot) { return slot.state == Slot::kFree; });
}

std::span<std::byte> ChunkFetcher::memory_of(Slot& slot, const Chunk& chunk) const {
    if (!chunk.destination.empty())
        return chunk.destination.first(padded(chunk.length));
    if (slot.scratch.bytes() == 0)
        slot.scratch = Mapping::anonymous(padded(options_.chunk_bytes));
    return slot.scratch.span().first(padded(chunk.length));
}

void ChunkFetcher::request(Slot& slot) {
    for (std::uint64_t begin = 0; begin < slot.memory.size(); begin += kRequestBytes) {
        const std::size_t index = free_requests_.back();
        free_requests_.pop_back();
        requests_[index] = {&slot, begin, std::min(begin + kRequestBytes, slot.memory.size())};
        ++slot.requests;
        queue(index);
    }
    ring_->submit();
}

void ChunkFetcher::queue(std::size_t index) {
    const Request& request = requests_[index];
    const Chunk& chunk = *request.slot->fetched.chunk;
    ring_->read(chunk.file->direct_fd(), chunk.offset + request.begin,
                request.slot->memory.subspan(request.begin, request.end - request.begin), index);
}

void ChunkFetcher::complete(const Uring::Completion& completion) {
    Request& request = requests_[completion.tag];
    if (!advance(request, completion.result)) {
        queue(completion.tag);
        return;
    }
    free_requests_.push_back(completion.tag);
    if (--request.slot->requests == 0)
        finish(*request.slot);
}

// Takes in the result of a request; false where the rest of it must be asked for anew.
bool ChunkFetcher::advance(Request& request, std::int64_t result) {
    Slot& slot = *request.slot;
    if (result < 0) {
        const int error = static_cast<int>(-result);
        if (is_refusal(error))
            slot.fell_short = true;
        else
            slot.error = error;
        return true;
    }
    request.begin += static_cast<std::uint64_t>(result);
    if (request.begin >= std::min(request.end, slot.fetched.chunk->length))
        return true;
    slot.fell_short |= result == 0 || request.begin % kAlignmentBytes != 0;
    return slot.fell_short;
}

// All requests are back.
void ChunkFetcher::finish(Slot& slot) {
    if (slot.error != 0 || slot.fell_short) {
        incomplete_.push_back(&slot);
        return;
    }
    slot.fetched.is_direct = slot.fetched.is_by_uring = true;
    complete_.push_back(&slot);
}

// What io_uring could not read is read once more, which also says what is wrong with the file. Only once nothing else
// is in flight, so that the first chunk that is wrong is named, whichever came back first.
void ChunkFetcher::read_again() {
    const auto first = std::ranges::min_element(incomplete_, {}, [](const Slot* slot) { return slot->fetched.chunk; });
    Slot& slot = **first;
    incomplete_.erase(first);
    if (slot.error != 0)
        throw_unreadable(slot.fetched, slot.error);
    fetch_at_once(slot.fetched, slot.memory);
    complete_.push_back(&slot);
}

}  // namespace serverless_triton::loader
