#include "chunk_hasher.h"

#include <stdexcept>
#include <string>

#include "chunk_pump.h"
#include "errors.h"

namespace serverless_triton::loader {
namespace {

FetchOptions fetch_options(std::uint64_t chunk_bytes) {
    return {.engine = choose_engine("auto"), .chunk_bytes = chunk_bytes};
}

void check_count(const FileImage& file, std::span<const Digest> expected, std::uint64_t chunk_bytes) {
    // An empty file has none, and cut() takes no hashes for "not known".
    if (expected.size() != chunks_in(file.bytes(), chunk_bytes))
        throw std::invalid_argument("one hash is needed for each chunk of " + file.path());
}

}  // namespace

void check_chunk(const FetchedChunk& fetched) {
    const Chunk& chunk = *fetched.chunk;
    if (chunk.hash == nullptr || xxh3_128(fetched.bytes) == *chunk.hash)
        return;
    throw CheckpointCorrupted(describe(chunk, fetched.source) +
                              ", does not match its hash; download the file again and check the disk");
}

std::vector<Digest> hash_chunks(const FileImage& file, unsigned threads, ReadJob& job, std::uint64_t chunk_bytes) {
    const std::vector<Chunk> chunks = cut(file, {}, chunk_bytes);
    std::vector<Digest> digests(chunks.size());
    pump_chunks(threads, fetch_options(chunk_bytes), chunks, job, [&](const FetchedChunk& fetched) {
        digests[fetched.chunk->index] = xxh3_128(fetched.bytes);
        job.add_done(fetched.chunk->length);
    });
    return digests;
}

void verify_chunks(const FileImage& file, std::span<const Digest> expected, unsigned threads, ReadJob& job,
                   std::uint64_t chunk_bytes) {
    check_count(file, expected, chunk_bytes);
    const std::vector<Chunk> chunks = cut(file, expected, chunk_bytes);
    pump_chunks(threads, fetch_options(chunk_bytes), chunks, job, [&](const FetchedChunk& fetched) {
        check_chunk(fetched);
        job.add_done(fetched.chunk->length);
    });
}

void verify_mapped(const FileImage& file, std::span<const std::byte> memory, std::span<const Digest> expected,
                   unsigned threads, ReadJob& job, const std::optional<std::vector<ByteRange>>& ranges,
                   std::uint64_t chunk_bytes) {
    check_count(file, expected, chunk_bytes);
    if (memory.size() < file.bytes())
        throw std::invalid_argument("the memory is smaller than " + file.path());
    const std::vector<Chunk> chunks = cut(file, expected, chunk_bytes, ranges);
    share_tasks(threads, chunks.size(), [&](const auto& next) {
        for (std::size_t i = next(); i < chunks.size(); i = next()) {
            job.proceed();
            const auto bytes = memory.subspan(chunks[i].offset, chunks[i].length);
            check_chunk({.chunk = &chunks[i], .bytes = bytes, .source = Source::kPageCache, .began_at = {}});
            job.add_done(chunks[i].length);
        }
    });
}

}  // namespace serverless_triton::loader
