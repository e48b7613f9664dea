// One allocation on a GPU that can be handed to another process as a file descriptor.
//
// The memory exists until the last process that made, imported or holds a descriptor of it is gone. Every process has
// an address of its own for it. Move-only; export_fd() and read() may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "gpu_device.h"
#include "unique_fd.h"

namespace serverless_triton::loader {

class DeviceMemory {
  public:
    // At least `bytes` of fresh memory; its content is undefined. Throws DeviceOutOfMemory, DeviceError;
    // std::invalid_argument for 0.
    static DeviceMemory allocate(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes);
    // The memory behind another process's descriptor, which stays the caller's. `bytes` is the bytes() of the one that
    // was exported. Read-only where the driver can do that, else writable: nobody should write to it.
    static DeviceMemory import(std::shared_ptr<const GpuDevice> device, int fd, std::uint64_t bytes);

    DeviceMemory(DeviceMemory&& other) noexcept;
    DeviceMemory& operator=(DeviceMemory&& other) noexcept;
    ~DeviceMemory();

    // A descriptor for import() in another process; it isn't inherited by programs that this process starts.
    [[nodiscard]] UniqueFd export_fd() const;
    // Copies bytes to the host and waits for them. Throws std::out_of_range past the end.
    void read(std::uint64_t offset, std::span<std::byte> target) const;

    [[nodiscard]] const std::shared_ptr<const GpuDevice>& device() const { return device_; }
    [[nodiscard]] cuda::DevicePtr address() const { return address_; }
    // What was asked for, rounded up to the driver's granularity: what it costs.
    [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
    // Whether the CPU may read address() as it is: only an emulated driver says so.
    [[nodiscard]] bool is_host_memory() const;

  private:
    DeviceMemory(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes);
    void map(int access);
    void free() noexcept;

    std::shared_ptr<const GpuDevice> device_;
    std::uint64_t bytes_ = 0;
    cuda::AllocationHandle handle_ = 0;
    bool has_handle_ = false;
    cuda::DevicePtr address_ = 0;
    bool is_mapped_ = false;
};

}  // namespace serverless_triton::loader
