// The header of a safetensors file: bytes in, checked index out. No I/O, no state: callable from any thread.
//
// Format (https://github.com/huggingface/safetensors#format): u64 little-endian header length N, N bytes of JSON
// {"name": {"dtype": "F32", "shape": [2, 2], "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data.
// Accepted is what the official reader accepts, except that a name given twice is refused: which of the two tensors
// a reader would return is otherwise up to that reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace serverless_triton::loader {

// The official reader's limit; a longer header is taken for an attack or for another format.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
inline constexpr std::uint64_t kLengthBytes = 8;

struct TensorEntry {
    std::string name;
    std::string dtype;  // as the format writes it: "BF16"
    std::vector<std::uint64_t> shape;
    std::uint64_t begin = 0;  // bytes from the start of the file, inclusive
    std::uint64_t end = 0;    // bytes from the start of the file, exclusive
};

struct HeaderIndex {
    std::uint64_t data_begin = 0;      // bytes from the start of the file
    std::vector<TensorEntry> tensors;  // in file order, without holes or overlaps
};

// How many bytes of the file the header takes, its length field included.
// `first_bytes`: the first 8 bytes, or all of a shorter file. Throws NotSafetensors or CheckpointTruncated.
[[nodiscard]] std::uint64_t header_extent(std::span<const std::byte> first_bytes, std::uint64_t file_bytes,
                                          std::string_view file_name);

// `head`: at least the header_extent() first bytes of the file. Every entry of the result lies inside `file_bytes`.
// Throws NotSafetensors or CheckpointTruncated, both naming `file_name`.
[[nodiscard]] HeaderIndex parse_header(std::span<const std::byte> head, std::uint64_t file_bytes,
                                       std::string_view file_name);

}  // namespace serverless_triton::loader
