// The same columns of every row of a tensor that lies in a file: what a tensor-parallel rank wants of it. A slice of
// the first dimension is a single row. Plain values, but for copy_columns().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunk_grid.h"

namespace serverless_triton::loader {

struct StridedCopy {
    std::uint64_t begin = 0;       // of the first row in the file
    std::uint64_t rows = 0;        // one after the other
    std::uint64_t row_bytes = 0;   // of each
    std::uint64_t keep_begin = 0;  // in each row
    std::uint64_t keep_bytes = 0;
    std::span<std::byte> target = {};  // rows * keep_bytes
};

// How much memory a copy fills; std::invalid_argument where no memory could hold that much.
[[nodiscard]] std::uint64_t target_bytes(const StridedCopy& copy);

// Throws std::invalid_argument unless all of it lies in a file of `file_bytes` and fills its target.
void check_copy(const StridedCopy& copy, std::uint64_t file_bytes);

// What must be read for it, of a checked copy. Gaps between rows are left out where they are long.
[[nodiscard]] std::vector<ByteRange> ranges_of(const StridedCopy& copy);

// Copies what `bytes`, which lie at `offset` of the file, hold of a checked copy. Any number of threads may do so for
// different bytes of one file at once.
void copy_columns(const StridedCopy& copy, std::uint64_t offset, std::span<const std::byte> bytes);

}  // namespace serverless_triton::loader
