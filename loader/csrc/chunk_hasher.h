// Hashes of a file's chunks: takes them, and compares them with those that were taken before.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "chunk.h"
#include "chunk_grid.h"
#include "read_job.h"

namespace serverless_triton::loader {

// Throws CheckpointCorrupted, naming file, chunk, byte range and source, where the chunk has a hash and its bytes have
// another. Callable from any thread.
void check_chunk(const FetchedChunk& fetched);

// The hashes of all chunks of `file`, read on `threads` threads through small buffers. Callable from any thread.
// Throws CheckpointTruncated, CheckpointUnreadable, OutOfMemory, ReadCancelled.
[[nodiscard]] std::vector<Digest> hash_chunks(const FileImage& file, unsigned threads, ReadJob& job,
                                              std::uint64_t chunk_bytes = kChunkBytes);

// As hash_chunks(), and throws CheckpointCorrupted at a chunk that differs from `expected`, which must have one hash
// for each chunk (std::invalid_argument).
void verify_chunks(const FileImage& file, std::span<const Digest> expected, unsigned threads, ReadJob& job,
                   std::uint64_t chunk_bytes = kChunkBytes);

// As verify_chunks(), of the file's bytes as they are mapped at `memory` (at least its size), without reading it again;
// with `ranges` only of the chunks that hold a byte of them.
void verify_mapped(const FileImage& file, std::span<const std::byte> memory, std::span<const Digest> expected,
                   unsigned threads, ReadJob& job, const std::optional<std::vector<ByteRange>>& ranges = std::nullopt,
                   std::uint64_t chunk_bytes = kChunkBytes);

}  // namespace serverless_triton::loader
