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
    if (expected.size() != chunks_in(file.bytes(), chunk_bytes))
        throw std::invalid_argument("one hash is needed for each chunk of " + file.path());
    const std::vector<Chunk> chunks = cut(file, expected, chunk_bytes);
    pump_chunks(threads, fetch_options(chunk_bytes), chunks, job, [&](const FetchedChunk& fetched) {
        check_chunk(fetched);
        job.add_done(fetched.chunk->length);
    });
}

}  // namespace serverless_triton::loader
