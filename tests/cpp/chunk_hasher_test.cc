#include "chunk_hasher.h"

#include <optional>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "errors.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kTestChunkBytes = 4 * 4096;

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}

void every_chunk_has_its_hash(std::size_t bytes) {
    const std::string content = pattern(bytes);
    const TemporaryFile file(content);
    ReadJob job;
    const std::vector<Digest> digests = hash_chunks(FileImage::open(file.path()), 3, job, kTestChunkBytes);
    CHECK(digests.size() == chunks_in(bytes, kTestChunkBytes) && job.bytes_done() == bytes);
    for (std::size_t i = 0; i < digests.size(); ++i)
        CHECK(digests[i] == xxh3_128(bytes_of(content.substr(i * kTestChunkBytes, kTestChunkBytes))));
}

void a_flipped_byte_is_found_wherever_it_is() {
    const std::string content = pattern(3 * kTestChunkBytes + 7);
    const TemporaryFile file(content);
    ReadJob job;
    const std::vector<Digest> digests = hash_chunks(FileImage::open(file.path()), 2, job, kTestChunkBytes);
    verify_chunks(FileImage::open(file.path()), digests, 2, job, kTestChunkBytes);
    for (std::size_t at = 0; at < content.size(); at += kTestChunkBytes / 2) {
        std::string corrupted = content;
        corrupted[at] ^= 1;
        file.write(corrupted);
        CHECK_THROWS(CheckpointCorrupted,
                     verify_chunks(FileImage::open(file.path()), digests, 2, job, kTestChunkBytes));
    }
}

void mapped_bytes_are_verified_where_they_are_wanted() {
    std::string content = pattern(3 * kTestChunkBytes + 7);
    const TemporaryFile file(content);
    const FileImage image = FileImage::open(file.path());
    ReadJob job;
    const std::vector<Digest> digests = hash_chunks(image, 2, job, kTestChunkBytes);
    content[2 * kTestChunkBytes] ^= 1;
    const auto verify = [&](std::optional<std::vector<ByteRange>> ranges) {
        verify_mapped(image, bytes_of(content), digests, 2, job, ranges, kTestChunkBytes);
    };
    verify(std::vector<ByteRange>{{0, 2 * kTestChunkBytes}, {3 * kTestChunkBytes, 3 * kTestChunkBytes + 1}});
    CHECK_THROWS(CheckpointCorrupted, verify(std::vector<ByteRange>{{3 * kTestChunkBytes - 1, 3 * kTestChunkBytes}}));
    CHECK_THROWS(CheckpointCorrupted, verify(std::nullopt));
    content.pop_back();
    CHECK_THROWS(std::invalid_argument, verify(std::nullopt));
}

void bad_calls_and_cancelled_jobs_are_refused() {
    const TemporaryFile file(pattern(10));
    const FileImage image = FileImage::open(file.path());
    ReadJob job;
    CHECK_THROWS(std::invalid_argument, verify_chunks(image, {}, 1, job, kTestChunkBytes));
    job.cancel();
    CHECK_THROWS(ReadCancelled, hash_chunks(image, 1, job, kTestChunkBytes));
}

}  // namespace

int main() {
    for (const std::size_t bytes : {0UL, 1UL, kTestChunkBytes - 1, kTestChunkBytes, 5 * kTestChunkBytes + 1})
        every_chunk_has_its_hash(bytes);
    a_flipped_byte_is_found_wherever_it_is();
    mapped_bytes_are_verified_where_they_are_wanted();
    bad_calls_and_cancelled_jobs_are_refused();
}
