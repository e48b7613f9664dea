// Moves files into memory: chunks of all of them in one queue, a pool of threads, aligned reads.
//
// A chunk that is wholly in the page cache is copied from there, any other is read past it (O_DIRECT) where the file
// system can. A throttled reader stands for a node with an SSD of its own: it neither looks at nor counts on the page
// cache, which all nodes of a machine share.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "chunk_fetcher.h"
#include "chunk_grid.h"
#include "chunk_sink.h"
#include "file_image.h"
#include "read_engine.h"
#include "read_job.h"
#include "strided_copy.h"
#include "throttle.h"

namespace serverless_triton::loader {

// One file and where it goes: pieces of memory in file order, which together hold at least the file's size rounded up
// to kAlignmentBytes. Each begins at a page, each but the last is a multiple of the reader's chunk long, so that no
// chunk lies in two. What lies between the file's end and that rounded size is undefined afterwards. With `hashes`, one
// a chunk, the bytes are verified; none means that they are taken as they come. With `ranges` only these are read, each
// to where it would be in the whole, and what must be read along with them (chunk_grid.h): the rest of the memory is
// not touched.
struct Transfer {
    const FileImage* file = nullptr;
    std::vector<std::span<std::byte>> pieces;
    std::span<const Digest> hashes = {};
    std::optional<std::vector<ByteRange>> ranges = std::nullopt;
};

// One file and what of its tensors goes where; hashes as above.
struct Gathering {
    const FileImage* file = nullptr;
    std::vector<StridedCopy> copies;
    std::span<const Digest> hashes = {};
};

// Where the bytes of one read() or gather() came from.
struct ReadReport {
    std::uint64_t disk_bytes = 0;
    std::uint64_t page_cache_bytes = 0;
    std::uint64_t direct_bytes = 0;  // the part of disk_bytes that went past the page cache
    std::uint64_t uring_bytes = 0;   // the part of direct_bytes that io_uring read
};

class Reader {
  public:
    // `chunk_bytes` is a multiple of kAlignmentBytes, `threads` at least 1 (std::invalid_argument otherwise);
    // `bytes_per_second` 0 means unthrottled. `engine` as in choose_engine().
    Reader(unsigned threads, std::uint64_t chunk_bytes, std::uint64_t bytes_per_second, std::string_view engine);

    // Blocks until every byte is in place, and verified where there are hashes; starts and ends its own threads. Any
    // number of threads may call it at once; they share the throttle. `sink`, if any, hears of every chunk. While the
    // job is paused no chunk is begun: those in flight are finished, then the threads wait. Throws the first failure of
    // any chunk or of the sink once all threads have stopped: CheckpointTruncated, CheckpointUnreadable,
    // CheckpointCorrupted, OutOfMemory, ReadCancelled; std::invalid_argument where memory or hashes do not fit the
    // file.
    [[nodiscard]] ReadReport read(std::span<const Transfer> transfers, ReadJob& job, ChunkSink* sink = nullptr);

    // As read(), but holds no more of the files than a few chunks a thread, and copies out of them. No two copies of a
    // file may share a byte of it (std::invalid_argument).
    [[nodiscard]] ReadReport gather(std::span<const Gathering> gatherings, ReadJob& job);

    [[nodiscard]] std::uint64_t bytes_per_second() const { return throttle_.bytes_per_second(); }
    // What direct reads are made with on mounts where that works (read_engine.h).
    [[nodiscard]] Engine engine() const { return engine_; }

  private:
    [[nodiscard]] FetchOptions fetch_options() const;

    const unsigned threads_;
    const std::uint64_t chunk_bytes_;
    const Engine engine_;
    Throttle throttle_;
};

}  // namespace serverless_triton::loader
