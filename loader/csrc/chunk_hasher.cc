#include "chunk_hasher.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "errors.h"
#include "memory_file.h"
#include "workers.h"

namespace serverless_triton::loader {
namespace {

std::string_view name_of(Source source) {
    return source == Source::kSsd ? "ssd" : "page_cache";
}

// `begin` lies on an aligned offset, and `buffer` has room for `length` rounded up to the alignment.
Source fetch(const FileImage& file, std::uint64_t begin, std::span<std::byte> buffer, std::uint64_t length) {
    const bool cached = file.is_resident(begin, length);
    if (cached || !file.supports_direct() || !file.read_direct(begin, buffer, length))
        file.read(begin, buffer.first(length));
    return cached ? Source::kPageCache : Source::kSsd;
}

// Calls visit(index, offset, bytes, source) for every chunk, on several threads.
template <typename Visit>
void visit_chunks(const FileImage& file, unsigned threads, ReadJob& job, std::uint64_t chunk_bytes,
                  const Visit& visit) {
    const std::uint64_t chunks = chunks_in(file.bytes(), chunk_bytes);
    share_tasks(threads, chunks, [&](const auto& next) {
        const Mapping buffer = Mapping::anonymous(chunk_bytes);
        for (std::uint64_t i = next(); i < chunks; i = next()) {
            job.proceed();
            const std::uint64_t begin = i * chunk_bytes;
            const std::uint64_t length = std::min(chunk_bytes, file.bytes() - begin);
            const Source source = fetch(file, begin, buffer.span(), length);
            visit(i, begin, std::span<const std::byte>(buffer.span().first(length)), source);
            job.add_done(length);
        }
    });
}

}  // namespace

void check_chunk(const FileImage& file, std::uint64_t index, std::uint64_t offset, std::span<const std::byte> bytes,
                 const Digest& expected, Source source) {
    if (xxh3_128(bytes) == expected)
        return;
    throw CheckpointCorrupted(file.path() + ": chunk " + std::to_string(index) + " (bytes " + std::to_string(offset) +
                              " to " + std::to_string(offset + bytes.size()) + "), read from " +
                              std::string(name_of(source)) +
                              ", does not match its hash; download the file again and check the disk");
}

std::vector<Digest> hash_chunks(const FileImage& file, unsigned threads, ReadJob& job, std::uint64_t chunk_bytes) {
    std::vector<Digest> digests(chunks_in(file.bytes(), chunk_bytes));
    visit_chunks(file, threads, job, chunk_bytes,
                 [&](std::uint64_t i, std::uint64_t, std::span<const std::byte> bytes, Source) {
                     digests[i] = xxh3_128(bytes);
                 });
    return digests;
}

void verify_chunks(const FileImage& file, std::span<const Digest> expected, unsigned threads, ReadJob& job,
                   std::uint64_t chunk_bytes) {
    if (expected.size() != chunks_in(file.bytes(), chunk_bytes))
        throw std::invalid_argument("one hash is needed for each chunk of " + file.path());
    visit_chunks(file, threads, job, chunk_bytes,
                 [&](std::uint64_t i, std::uint64_t offset, std::span<const std::byte> bytes, Source source) {
                     check_chunk(file, i, offset, bytes, expected[i], source);
                 });
}

}  // namespace serverless_triton::loader
