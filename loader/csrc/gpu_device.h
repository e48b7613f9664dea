// One GPU of this machine: its primary context, which torch uses too, kept as long as anything here needs it.
// All may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cuda_driver.h"

namespace serverless_triton::loader {

class GpuDevice {
  public:
    // The device of that number, as the driver counts them (CUDA_VISIBLE_DEVICES applies). One object a device in a
    // process while any is held. Throws DeviceUnavailable where there is no such device, or where it has no virtual
    // memory management or cannot hand memory over as file descriptors.
    static std::shared_ptr<const GpuDevice> open(int ordinal);

    // The names of all devices, in the order of their numbers: what nvidia-smi -L prints, the same in every process,
    // while numbers depend on CUDA_VISIBLE_DEVICES. Throws DeviceUnavailable.
    static std::vector<std::string> uuids();

    explicit GpuDevice(int ordinal);
    GpuDevice(const GpuDevice&) = delete;
    GpuDevice& operator=(const GpuDevice&) = delete;
    ~GpuDevice();

    [[nodiscard]] const cuda::Driver& driver() const { return driver_; }
    [[nodiscard]] int ordinal() const { return ordinal_; }
    [[nodiscard]] std::string name() const;
    // Of the whole device, whoever holds it: the driver's own figures.
    [[nodiscard]] std::uint64_t total_bytes() const;
    [[nodiscard]] std::uint64_t free_bytes() const;

    // Makes the context current on this thread until the end of the scope.
    class Current {
      public:
        explicit Current(const GpuDevice& device);
        // For destructors: at the end of the process the driver may refuse.
        Current(const GpuDevice& device, std::nothrow_t) noexcept;
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;
        ~Current();

      private:
        const cuda::Driver& driver_;
        const bool is_pushed_;
    };

  private:
    const cuda::Driver& driver_;
    const int ordinal_;
    cuda::Device device_ = 0;
    cuda::Context context_ = nullptr;
};

}  // namespace serverless_triton::loader
