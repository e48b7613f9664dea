// One stream of copies to a GPU, a bounded number of them under way at a time. Not synchronised: its owner sees to it
// that one thread at a time uses a lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu_device.h"
#include "pinned_memory.h"

namespace serverless_triton::loader {

class GpuLane {
  public:
    // At most `depth` copies are under way at once; a buffer of `staging_bytes` stands behind each that needs one. The
    // device's context must be current, here and in every call but the destructor.
    GpuLane(std::shared_ptr<const GpuDevice> device, unsigned depth, std::uint64_t staging_bytes);
    GpuLane(const GpuLane&) = delete;
    GpuLane& operator=(const GpuLane&) = delete;
    // Waits for the copies under way.
    ~GpuLane();

    // Both return when the copy is on its way, which may mean waiting for an earlier one, and throw DeviceError for a
    // failure of this or of an earlier one. Registered bytes must stay as they are until drain() returns; staged ones
    // (at most staging_bytes at a time) may change at once.
    void copy_registered(cuda::DevicePtr target, std::span<const std::byte> bytes);
    void copy_staged(cuda::DevicePtr target, std::span<const std::byte> bytes);
    // Returns when nothing is under way. Throws DeviceError.
    void drain();

    [[nodiscard]] std::uint64_t staging_bytes() const { return staging_bytes_; }

  private:
    struct Slot {
        cuda::Event done = nullptr;
        bool is_busy = false;
        std::optional<PinnedBuffer> buffer;
    };

    Slot& next_slot();
    void send(Slot& slot, cuda::DevicePtr target, std::span<const std::byte> bytes);

    const std::shared_ptr<const GpuDevice> device_;
    const std::uint64_t staging_bytes_;
    cuda::Stream stream_ = nullptr;
    std::vector<Slot> slots_;
    std::size_t next_ = 0;
};

}  // namespace serverless_triton::loader
