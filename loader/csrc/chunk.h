// A stretch of a file that is read at once, and the same with its bytes in memory. Plain values: readers' threads may
// share them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "file_image.h"
#include "xxh3.h"

namespace serverless_triton::loader {

[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t bytes) {
    return (bytes + kAlignmentBytes - 1) & ~(kAlignmentBytes - 1);
}

struct Chunk {
    const FileImage* file = nullptr;
    std::size_t file_index = 0;             // in the list of files that are read together
    std::uint64_t index = 0;                // in the file's grid
    std::uint64_t offset = 0;               // in the file, aligned
    std::uint64_t length = 0;               // bytes of the file
    std::span<std::byte> destination = {};  // padded(length) bytes from a page on; empty: into the reader's own memory
    const Digest* hash = nullptr;           // null where the bytes are taken as they come
};

// Where a chunk's bytes came from.
enum class Source { kSsd, kPageCache };

struct FetchedChunk {
    const Chunk* chunk = nullptr;
    std::span<const std::byte> bytes;  // chunk->length of them
    Source source = Source::kSsd;
    bool is_direct = false;    // past the page cache
    bool is_by_uring = false;  // and asked for through io_uring
    std::chrono::steady_clock::time_point began_at;
};

// "PATH: chunk 3 (bytes 25165824 to 33554432), read from ssd", for messages.
[[nodiscard]] std::string describe(const Chunk& chunk, Source source);

}  // namespace serverless_triton::loader
