#include "chunk_grid.h"

#include <algorithm>
#include <stdexcept>

namespace serverless_triton::loader {
namespace {

// For each chunk of the grid the bytes from the first wanted one to the last; empty where none is wanted.
std::vector<ByteRange> wanted_of(const FileImage& file, std::span<const ByteRange> ranges, std::uint64_t chunk_bytes) {
    std::vector<ByteRange> wanted(chunks_in(file.bytes(), chunk_bytes));
    for (const ByteRange& range : ranges) {
        if (range.begin > range.end || range.end > file.bytes())
            throw std::invalid_argument("a range lies past the end of " + file.path());
        for (std::uint64_t begin = range.begin; begin < range.end;) {
            ByteRange& hull = wanted[begin / chunk_bytes];
            const std::uint64_t end = std::min(range.end, (begin / chunk_bytes + 1) * chunk_bytes);
            const bool is_first = hull.begin == hull.end;
            hull = {is_first ? begin : std::min(hull.begin, begin), is_first ? end : std::max(hull.end, end)};
            begin = end;
        }
    }
    return wanted;
}

}  // namespace

std::vector<Chunk> cut(const FileImage& file, std::span<const Digest> hashes, std::uint64_t chunk_bytes,
                       const std::optional<std::vector<ByteRange>>& ranges) {
    if (!hashes.empty() && hashes.size() != chunks_in(file.bytes(), chunk_bytes))
        throw std::invalid_argument("one hash is needed for each chunk of " + file.path());
    const ByteRange all{0, file.bytes()};
    const std::vector<ByteRange> wanted =
        wanted_of(file, ranges ? std::span(*ranges) : std::span(&all, 1), chunk_bytes);
    std::vector<Chunk> chunks;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i].begin == wanted[i].end)
            continue;
        const Digest* hash = hashes.empty() ? nullptr : &hashes[i];
        const std::uint64_t chunk_begin = i * chunk_bytes;
        const std::uint64_t begin = hash ? chunk_begin : wanted[i].begin / kAlignmentBytes * kAlignmentBytes;
        const std::uint64_t end = std::min(hash ? chunk_begin + chunk_bytes : padded(wanted[i].end), file.bytes());
        chunks.push_back({.file = &file, .index = i, .offset = begin, .length = end - begin, .hash = hash});
    }
    return chunks;
}

}  // namespace serverless_triton::loader
