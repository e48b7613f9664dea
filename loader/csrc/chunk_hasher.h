// Hashes of a file's chunks: takes them, and compares them with those that were taken before.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "file_image.h"
#include "read_job.h"
#include "xxh3.h"

namespace serverless_triton::loader {

// The grid of all chunk hashes, and how much a reader asks of the disk at once.
inline constexpr std::uint64_t kChunkBytes = 8 * 1024 * 1024;

// Where a chunk's bytes came from.
enum class Source { kSsd, kPageCache };

[[nodiscard]] constexpr std::uint64_t chunks_in(std::uint64_t bytes, std::uint64_t chunk_bytes) {
    return bytes / chunk_bytes + (bytes % chunk_bytes != 0);
}

// Throws CheckpointCorrupted, naming file, chunk, byte range and source, unless `bytes`, which begin at `offset` of the
// file, have the hash `expected`. Callable from any thread.
void check_chunk(const FileImage& file, std::uint64_t index, std::uint64_t offset, std::span<const std::byte> bytes,
                 const Digest& expected, Source source);

// The hashes of all chunks of `file`, read on `threads` threads through small buffers. Callable from any thread.
// Throws CheckpointTruncated, CheckpointUnreadable, OutOfMemory, ReadCancelled.
[[nodiscard]] std::vector<Digest> hash_chunks(const FileImage& file, unsigned threads, ReadJob& job,
                                              std::uint64_t chunk_bytes = kChunkBytes);

// As hash_chunks(), and throws CheckpointCorrupted at a chunk that differs from `expected`, which must have one hash
// for each chunk (std::invalid_argument).
void verify_chunks(const FileImage& file, std::span<const Digest> expected, unsigned threads, ReadJob& job,
                   std::uint64_t chunk_bytes = kChunkBytes);

}  // namespace serverless_triton::loader
