// Copies an image's files into memory of one GPU, chunk by chunk as they become ready, on several streams.
//
// Bytes of registered memory are copied from where they are, any others through small pinned buffers. chunk_ready() and
// copy() may be called by any number of threads at once, cancel() and copied_bytes() by anyone at any time; restart()
// by one thread while those do not run; finish() by one thread, once, after the others are done. Several copies, to one
// GPU or several, do not disturb each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "chunk_sink.h"
#include "device_memory.h"
#include "gpu_lane.h"
#include "pinned_memory.h"
#include "read_job.h"

namespace serverless_triton::loader {

struct GpuCopyOptions {
    unsigned streams = 4;
    unsigned depth = 4;  // copies under way a stream
    std::uint64_t staging_bytes = 4 * 1024 * 1024;
};

class GpuCopy final : public ChunkSink {
  public:
    // File i of a read goes to `target` from offsets[i] on. `registered`, if any, is the memory that its chunks lie in.
    // Throws DeviceError.
    GpuCopy(std::shared_ptr<const DeviceMemory> target, std::vector<std::uint64_t> offsets,
            std::shared_ptr<RegisteredMemory> registered, const GpuCopyOptions& options = {});
    // Waits for the copies under way, so that the memory they read may be used anew.
    ~GpuCopy() override;

    // Sends the chunk on its way. Never throws: a GPU that fails must not fail the read, so the first failure is kept
    // for finish(), and what comes after it is left out. The bytes must stay as they are until finish() has returned or
    // this is gone.
    void chunk_ready(std::size_t file_index, std::uint64_t offset, std::uint64_t length,
                     const std::byte* bytes) override;
    // What was sent has arrived when this returns, and copied_bytes() begins anew. Never throws, like chunk_ready().
    void restart() override;
    // Sends a whole file that lies in memory, `pieces` in file order. Ends early after a failure, cancel() or
    // job.cancel().
    void copy(std::size_t file_index, std::span<const std::span<const std::byte>> pieces, ReadJob& job);

    // What is on its way still arrives; nothing else is begun.
    void cancel() { is_cancelled_ = true; }
    // Waits until everything has arrived. Throws the first failure, or ReadCancelled.
    void finish();

    // How many bytes were sent on their way, since restart() if there was one.
    [[nodiscard]] std::uint64_t copied_bytes() const { return copied_bytes_; }

  private:
    struct Lane {
        template <typename... Arguments>
        explicit Lane(Arguments&&... arguments) : stream(std::forward<Arguments>(arguments)...) {}
        std::mutex mutex;
        GpuLane stream;
    };

    void send(cuda::DevicePtr target, std::span<const std::byte> bytes);
    // Waits until everything has arrived; a failure is kept.
    void drain();
    [[nodiscard]] cuda::DevicePtr checked_target(std::size_t file_index, std::uint64_t offset,
                                                 std::uint64_t length) const;
    void keep(std::exception_ptr failure);

    const std::shared_ptr<const DeviceMemory> target_;
    const std::vector<std::uint64_t> offsets_;
    const std::shared_ptr<RegisteredMemory> registered_;
    std::vector<std::unique_ptr<Lane>> lanes_;
    std::atomic<std::size_t> next_lane_{0};
    std::atomic<bool> is_cancelled_{false};
    std::atomic<bool> has_failed_{false};
    std::atomic<std::uint64_t> copied_bytes_{0};
    std::mutex failure_mutex_;
    std::exception_ptr failure_;
};

}  // namespace serverless_triton::loader
