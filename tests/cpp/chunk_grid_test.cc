#include "chunk_grid.h"

#include <stdexcept>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kTestChunkBytes = 4 * 4096;
constexpr std::uint64_t kFileBytes = 3 * kTestChunkBytes + 100;

struct Grid {
    TemporaryFile content{pattern(kFileBytes)};
    FileImage file = FileImage::open(content.path());
    std::vector<Digest> hashes = std::vector<Digest>(4);
};

void a_whole_file_is_cut_on_the_grid() {
    const Grid grid;
    const auto chunks = cut(grid.file, grid.hashes, kTestChunkBytes);
    CHECK(chunks.size() == 4);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        CHECK(chunks[i].index == i && chunks[i].offset == i * kTestChunkBytes && chunks[i].hash == &grid.hashes[i]);
        CHECK(chunks[i].length == (i < 3 ? kTestChunkBytes : 100));
    }
}

void only_chunks_with_wanted_bytes_are_read_and_no_more_of_them_than_needed() {
    const Grid grid;
    const std::vector<ByteRange> ranges{{kFileBytes - 1, kFileBytes}, {5'000, 5'001}, {4'000, 4'097}, {9'000, 9'000}};
    const auto chunks = cut(grid.file, {}, kTestChunkBytes, ranges);
    CHECK(chunks.size() == 2 && chunks[0].hash == nullptr);
    CHECK(chunks[0].index == 0 && chunks[0].offset == 0 && chunks[0].length == 8'192);
    CHECK(chunks[1].index == 3 && chunks[1].offset == 3 * kTestChunkBytes && chunks[1].length == 100);
}

void a_range_may_span_chunks() {
    const Grid grid;
    const auto chunks =
        cut(grid.file, {}, kTestChunkBytes, std::vector<ByteRange>{{kTestChunkBytes - 1, 2 * kTestChunkBytes + 1}});
    CHECK(chunks.size() == 3);
    CHECK(chunks[0].offset == kTestChunkBytes - 4096 && chunks[0].length == 4096);
    CHECK(chunks[1].offset == kTestChunkBytes && chunks[1].length == kTestChunkBytes);
    CHECK(chunks[2].offset == 2 * kTestChunkBytes && chunks[2].length == 4096);
}

void what_is_verified_is_read_whole() {
    const Grid grid;
    const auto chunks = cut(grid.file, grid.hashes, kTestChunkBytes,
                            std::vector<ByteRange>{{kTestChunkBytes + 9, kTestChunkBytes + 10}});
    CHECK(chunks.size() == 1 && chunks[0].index == 1 && chunks[0].hash == &grid.hashes[1]);
    CHECK(chunks[0].offset == kTestChunkBytes && chunks[0].length == kTestChunkBytes);
}

void nothing_wanted_is_nothing_read_and_nonsense_is_refused() {
    const Grid grid;
    CHECK(cut(grid.file, {}, kTestChunkBytes, std::vector<ByteRange>{}).empty());
    CHECK_THROWS(std::invalid_argument, cut(grid.file, std::span(grid.hashes).first(3), kTestChunkBytes));
    for (const ByteRange& range : {ByteRange{0, kFileBytes + 1}, ByteRange{2, 1}, ByteRange{kFileBytes + 1, 1}})
        CHECK_THROWS(std::invalid_argument, cut(grid.file, {}, kTestChunkBytes, std::vector<ByteRange>{range}));
}

}  // namespace

int main() {
    a_whole_file_is_cut_on_the_grid();
    only_chunks_with_wanted_bytes_are_read_and_no_more_of_them_than_needed();
    a_range_may_span_chunks();
    what_is_verified_is_read_whole();
    nothing_wanted_is_nothing_read_and_nonsense_is_refused();
}
