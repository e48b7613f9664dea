// Who wants a file's bytes as soon as each chunk of them is in memory: a copy on to a GPU, say.
#pragma once

#include <cstddef>
#include <cstdint>

namespace serverless_triton::loader {

class ChunkSink {
  public:
    ChunkSink() = default;
    ChunkSink(const ChunkSink&) = delete;
    ChunkSink& operator=(const ChunkSink&) = delete;
    virtual ~ChunkSink() = default;

    // `length` bytes from `offset` of the file with that index in the read are in memory from `bytes` on, and verified
    // where the file has hashes. Called once a chunk, on the thread that read it: by several threads at once and in no
    // order, while other chunks are being read. It may block, which holds up that thread, and must not keep the GIL.
    // The bytes stay where they are for as long as the memory that was read into. What it throws ends the read.
    virtual void chunk_ready(std::size_t file_index, std::uint64_t offset, std::uint64_t length,
                             const std::byte* bytes) = 0;

    // What was told does not count: another read into the same memory begins, and tells of every chunk anew. Called
    // while no chunk_ready() runs; returns when the memory may be written.
    virtual void restart() = 0;
};

}  // namespace serverless_triton::loader
