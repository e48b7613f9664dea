#include "strided_copy.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "checked.h"

namespace serverless_triton::loader {
namespace {

// A shorter gap is read along: asking for every row by itself would cost more.
constexpr std::uint64_t kLongGapBytes = kChunkBytes;

bool is_empty(const StridedCopy& copy) {
    return copy.rows == 0 || copy.keep_bytes == 0;
}

}  // namespace

std::uint64_t target_bytes(const StridedCopy& copy) {
    const auto bytes = checked_multiply(copy.rows, copy.keep_bytes);
    if (!bytes)
        throw std::invalid_argument("a strided copy is larger than any memory");
    return *bytes;
}

void check_copy(const StridedCopy& copy, std::uint64_t file_bytes) {
    const auto kept = checked_add(copy.keep_begin, copy.keep_bytes);
    const auto bytes = checked_multiply(copy.rows, copy.row_bytes);
    const auto end = bytes ? checked_add(copy.begin, *bytes) : std::nullopt;
    if (!kept || *kept > copy.row_bytes || !end || *end > file_bytes || target_bytes(copy) != copy.target.size())
        throw std::invalid_argument("a strided copy does not fit its file or its target");
}

std::vector<ByteRange> ranges_of(const StridedCopy& copy) {
    if (is_empty(copy))
        return {};
    const std::uint64_t first = copy.begin + copy.keep_begin;
    if (copy.row_bytes - copy.keep_bytes < kLongGapBytes)
        return {{first, first + (copy.rows - 1) * copy.row_bytes + copy.keep_bytes}};
    std::vector<ByteRange> ranges;
    for (std::uint64_t row = 0; row < copy.rows; ++row)
        ranges.push_back({first + row * copy.row_bytes, first + row * copy.row_bytes + copy.keep_bytes});
    return ranges;
}

void copy_columns(const StridedCopy& copy, std::uint64_t offset, std::span<const std::byte> bytes) {
    const std::uint64_t end = offset + bytes.size();
    if (is_empty(copy) || end <= copy.begin)
        return;
    const std::uint64_t first_row = offset > copy.begin ? (offset - copy.begin) / copy.row_bytes : 0;
    for (std::uint64_t row = first_row; row < copy.rows; ++row) {
        const std::uint64_t row_begin = copy.begin + row * copy.row_bytes + copy.keep_begin;
        if (row_begin >= end)
            return;
        const std::uint64_t from = std::max(row_begin, offset);
        const std::uint64_t to = std::min(row_begin + copy.keep_bytes, end);
        if (from < to)
            std::memcpy(&copy.target[row * copy.keep_bytes + from - row_begin], &bytes[from - offset], to - from);
    }
}

}  // namespace serverless_triton::loader
