// One thread's reads: begins several chunks at once where io_uring serves them, one at a time otherwise, and gives them
// back as they are complete. Not synchronised: a fetcher belongs to the thread that made it.
//
// A chunk that is wholly in the page cache is copied from there; any other is read past it (O_DIRECT) where the file
// system can, through it where not.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "chunk.h"
#include "chunk_grid.h"
#include "mapping.h"
#include "read_engine.h"
#include "uring.h"

namespace serverless_triton::loader {

struct FetchOptions {
    Engine engine = Engine::kPread;
    bool use_page_cache = true;               // false: as if nothing were in it
    std::uint64_t chunk_bytes = kChunkBytes;  // the longest chunk
    unsigned chunks_in_flight = 4;            // at the disk, where it is asked by io_uring
    unsigned chunks_begun = 4;                // these and the complete ones that next() has not returned
};

class ChunkFetcher {
  public:
    explicit ChunkFetcher(const FetchOptions& options);
    ChunkFetcher(const ChunkFetcher&) = delete;
    ChunkFetcher& operator=(const ChunkFetcher&) = delete;
    // Waits for what is in flight.
    ~ChunkFetcher() = default;

    [[nodiscard]] bool can_begin() const;    // whether another chunk may be begun before next()
    [[nodiscard]] bool is_idle() const;      // whether next() has nothing to return
    [[nodiscard]] bool reads_ahead() const;  // whether the disk works on what was begun while the caller does something

    // Starts to read a chunk; it and its destination must stay until next() returned it or the fetcher is gone. May do
    // the whole read. Throws OutOfMemory, CheckpointUnreadable, CheckpointTruncated.
    void begin(const Chunk& chunk);

    // Blocks until one of the begun chunks is complete; those with errors come last, in file order. Bytes in the
    // fetcher's own memory stay until the next call of next(), or of begin() where nothing is read ahead. Throws as
    // begin().
    [[nodiscard]] FetchedChunk next();

  private:
    // A chunk that is being read, and what of it is still missing in the kernel's hands.
    struct Slot {
        Mapping scratch = Mapping::anonymous(0);
        FetchedChunk fetched;
        std::span<std::byte> memory;
        unsigned requests = 0;  // in flight
        int error = 0;          // errno of a failed request
        bool fell_short = false;
        enum { kFree, kReading, kHandedOut } state = kFree;
    };
    struct Request {
        Slot* slot = nullptr;
        std::uint64_t begin = 0;  // what is still to be read of the slot's memory
        std::uint64_t end = 0;
    };

    [[nodiscard]] Slot& free_slot();
    void take_in();
    void take_back();
    [[nodiscard]] std::span<std::byte> memory_of(Slot& slot, const Chunk& chunk) const;
    void request(Slot& slot);
    void queue(std::size_t request);
    void complete(const Uring::Completion& completion);
    [[nodiscard]] bool advance(Request& request, std::int64_t result);
    void finish(Slot& slot);
    void read_again();

    const FetchOptions options_;
    std::vector<Slot> slots_;
    std::vector<Request> requests_;
    std::vector<std::size_t> free_requests_;
    std::deque<Slot*> complete_;
    std::vector<Slot*> incomplete_;  // of which io_uring brought only a part
    Slot* handed_out_ = nullptr;
    unsigned begun_ = 0;   // and not handed out yet
    bool is_due_ = false;  // the first complete one was read at once: it is in the processor's cache
    // Declared last, so that it goes first: it waits for the kernel to be done with the memory above.
    std::optional<Uring> ring_;
};

}  // namespace serverless_triton::loader
