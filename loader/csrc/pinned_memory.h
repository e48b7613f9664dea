// Host memory that GPUs may read by themselves: a long range that is registered with the driver step by step, as its
// parts are first needed, and small buffers of the driver's own for what it does not let us register.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "gpu_device.h"

namespace serverless_triton::loader {

// A range that all GPUs may read once a part of it is registered. Registering takes every page of a step, so what
// nobody copies is never touched for it. May be called from any thread; the memory must outlive it, and no copy from it
// may be under way when it goes.
class RegisteredMemory {
  public:
    static constexpr std::uint64_t kStepBytes = 64 * 1024 * 1024;

    // `memory` begins at a page; `step_bytes` is a multiple of the page size (std::invalid_argument otherwise).
    explicit RegisteredMemory(std::span<const std::byte> memory, std::uint64_t step_bytes = kStepBytes);
    RegisteredMemory(const RegisteredMemory&) = delete;
    RegisteredMemory& operator=(const RegisteredMemory&) = delete;
    ~RegisteredMemory();

    // How many of the `length` bytes from `begin` on may be copied at once from registered memory: those up to the end
    // of their step, which this registers if need be. 0 where they lie outside or where the driver refuses (then it is
    // not asked again for that step). The device's context must be current.
    [[nodiscard]] std::uint64_t register_from(const std::shared_ptr<const GpuDevice>& device, const std::byte* begin,
                                              std::uint64_t length);
    [[nodiscard]] std::uint64_t registered_bytes() const;

  private:
    enum class Step : std::uint8_t { kUnknown, kRegistered, kRefused };
    [[nodiscard]] std::span<const std::byte> bytes_of(std::size_t step) const;

    const std::span<const std::byte> memory_;
    const std::uint64_t step_bytes_;
    mutable std::mutex mutex_;
    std::vector<Step> steps_;
    std::shared_ptr<const GpuDevice> device_;  // whose context registered the first step
};

// A pinned buffer of the driver's. Move-only; not synchronised.
class PinnedBuffer {
  public:
    // Throws DeviceOutOfMemory, DeviceError. The device's context must be current.
    PinnedBuffer(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes);
    PinnedBuffer(PinnedBuffer&& other) noexcept;
    PinnedBuffer& operator=(PinnedBuffer&&) = delete;
    ~PinnedBuffer();

    [[nodiscard]] std::span<std::byte> span() const { return span_; }

  private:
    std::shared_ptr<const GpuDevice> device_;
    std::span<std::byte> span_;
};

}  // namespace serverless_triton::loader
