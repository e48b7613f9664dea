// Cuts files into chunks. Pure; callable from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "chunk.h"

namespace serverless_triton::loader {

// The grid of all chunk hashes, and how much a reader asks of the disk at once.
inline constexpr std::uint64_t kChunkBytes = 8 * 1024 * 1024;

[[nodiscard]] constexpr std::uint64_t chunks_in(std::uint64_t bytes, std::uint64_t chunk_bytes) {
    return bytes / chunk_bytes + (bytes % chunk_bytes != 0);
}

// Bytes of a file, the last one excluded.
struct ByteRange {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

// The chunks of `file`, in its order and without destinations; with `hashes`, one for each chunk of the whole file,
// each has its own. With `ranges`, in any order, only the chunks that hold a byte of them: whole ones where they have
// to be verified, else from the first such byte to the last, widened to kAlignmentBytes. Throws std::invalid_argument
// where there are too many or too few hashes, or a range is not of this file.
[[nodiscard]] std::vector<Chunk> cut(const FileImage& file, std::span<const Digest> hashes, std::uint64_t chunk_bytes,
                                     const std::optional<std::vector<ByteRange>>& ranges = std::nullopt);

}  // namespace serverless_triton::loader
