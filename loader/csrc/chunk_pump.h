// Threads that fetch chunks and hand each to somebody as soon as it is there.
#pragma once

#include <atomic>
#include <span>

#include "chunk.h"
#include "chunk_fetcher.h"
#include "read_job.h"
#include "workers.h"

namespace serverless_triton::loader {

// Begins chunks as long as there is room and the job is not paused; in a paused job it blocks only where it may, and
// once none is in flight. False when no chunk is left.
template <typename Next>
bool begin_chunks(ChunkFetcher& fetcher, std::span<const Chunk> chunks, ReadJob& job, const Next& next,
                  bool may_block) {
    while (fetcher.can_begin()) {
        if (job.is_paused() && !(may_block && fetcher.is_idle()))
            return true;
        if (may_block)
            job.proceed();
        const std::size_t i = next();
        if (i == chunks.size())
            return false;
        fetcher.begin(chunks[i]);
    }
    return true;
}

// Calls visit(fetched) for every chunk on up to `threads` threads, the caller's own among them, in no order. The bytes
// of a chunk without a destination stay for the call only. Returns once all threads are done, with their first failure:
// what `visit` throws, CheckpointTruncated, CheckpointUnreadable, OutOfMemory, ReadCancelled.
template <typename Visit>
void pump_chunks(unsigned threads, const FetchOptions& options, std::span<const Chunk> chunks, ReadJob& job,
                 const Visit& visit) {
    share_tasks(threads, chunks.size(), [&](const auto& next) {
        ChunkFetcher fetcher(options);
        bool more = true;
        while (more || !fetcher.is_idle()) {
            more = more && begin_chunks(fetcher, chunks, job, next, true);
            job.stop_if_cancelled();
            if (fetcher.is_idle())
                continue;
            const FetchedChunk fetched = fetcher.next();
            // First more work for the disk: what reads complete together would else be hashed together, the disk idle.
            more = more && (!fetcher.reads_ahead() || begin_chunks(fetcher, chunks, job, next, false));
            visit(fetched);
        }
    });
}

}  // namespace serverless_triton::loader
