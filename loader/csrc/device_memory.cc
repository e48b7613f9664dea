#include "device_memory.h"

#include <fcntl.h>

#include <stdexcept>
#include <utility>

#include "checked.h"
#include "errors.h"

namespace serverless_triton::loader {
namespace {

cuda::AllocationProperties properties_of(const GpuDevice& device) {
    cuda::AllocationProperties properties;
    properties.type = cuda::kAllocationPinned;
    properties.requested_handle_types = cuda::kHandlePosixFd;
    properties.location = {cuda::kLocationDevice, device.ordinal()};
    return properties;
}

std::uint64_t granularity_of(const GpuDevice& device) {
    const cuda::AllocationProperties properties = properties_of(device);
    std::size_t granularity = 0;
    device.driver().memory_granularity(&granularity, &properties, cuda::kGranularityMinimum);
    return granularity;
}

std::uint64_t padded(std::uint64_t bytes, std::uint64_t granularity) {
    const auto rounded = checked_round_up(bytes, granularity);
    if (bytes == 0 || !rounded)
        throw std::invalid_argument("an impossible size for device memory: " + std::to_string(bytes));
    return *rounded;
}

}  // namespace

DeviceMemory::DeviceMemory(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes)
    : device_(std::move(device)), bytes_(padded(bytes, granularity_of(*device_))) {}

DeviceMemory DeviceMemory::allocate(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes) {
    const GpuDevice::Current current(*device);
    DeviceMemory memory(std::move(device), bytes);
    const cuda::AllocationProperties properties = properties_of(*memory.device_);
    memory.device_->driver().memory_create(&memory.handle_, memory.bytes_, &properties, 0);
    memory.has_handle_ = true;
    memory.map(cuda::kAccessReadWrite);
    return memory;
}

DeviceMemory DeviceMemory::import(std::shared_ptr<const GpuDevice> device, int fd, std::uint64_t bytes) {
    const GpuDevice::Current current(*device);
    DeviceMemory memory(std::move(device), bytes);
    // The descriptor itself is what the driver expects in the place of the pointer.
    void* const handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
    memory.device_->driver().memory_import(&memory.handle_, handle, cuda::kHandlePosixFd);
    memory.has_handle_ = true;
    memory.map(cuda::kAccessRead);
    return memory;
}

// Drivers differ in whether device memory can be made read-only: those that cannot get it writable.
void DeviceMemory::map(int access) {
    const cuda::Driver& driver = device_->driver();
    driver.address_reserve(&address_, bytes_, 0, 0, 0);
    driver.memory_map(address_, bytes_, 0, handle_, 0);
    is_mapped_ = true;
    cuda::AccessDescription description{{cuda::kLocationDevice, device_->ordinal()}, access};
    const cuda::Result result = driver.memory_set_access.attempt(address_, bytes_, &description, 1);
    if (result == cuda::kSuccess)
        return;
    description.flags = cuda::kAccessReadWrite;
    driver.memory_set_access(address_, bytes_, &description, 1);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(std::move(other.device_)),
      bytes_(std::exchange(other.bytes_, 0)),
      handle_(std::exchange(other.handle_, 0)),
      has_handle_(std::exchange(other.has_handle_, false)),
      address_(std::exchange(other.address_, 0)),
      is_mapped_(std::exchange(other.is_mapped_, false)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(handle_, other.handle_);
    std::swap(has_handle_, other.has_handle_);
    std::swap(address_, other.address_);
    std::swap(is_mapped_, other.is_mapped_);
    return *this;
}

DeviceMemory::~DeviceMemory() {
    if (device_)
        free();
}

// A refusal leaves nothing that could be done: the driver takes all of it back when the process ends.
void DeviceMemory::free() noexcept {
    const cuda::Driver& driver = device_->driver();
    if (is_mapped_)
        static_cast<void>(driver.memory_unmap.attempt(address_, bytes_));
    if (address_ != 0)
        static_cast<void>(driver.address_free.attempt(address_, bytes_));
    if (has_handle_)
        static_cast<void>(driver.memory_release.attempt(handle_));
}

UniqueFd DeviceMemory::export_fd() const {
    int fd = -1;
    device_->driver().memory_export(&fd, handle_, cuda::kHandlePosixFd, 0);
    UniqueFd exported(fd);
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
        throw DeviceError("the driver's descriptor of device memory cannot be used");
    return exported;
}

void DeviceMemory::read(std::uint64_t offset, std::span<std::byte> target) const {
    const auto end = checked_add(offset, target.size());
    if (!end || *end > bytes_)
        throw std::out_of_range("a read past the end of device memory");
    if (target.empty())
        return;
    const GpuDevice::Current current(*device_);
    device_->driver().copy_to_host(target.data(), address_ + offset, target.size());
}

bool DeviceMemory::is_host_memory() const {
    const GpuDevice::Current current(*device_);
    unsigned type = 0;
    device_->driver().pointer_get_attribute(&type, cuda::kPointerMemoryType, address_);
    return type == cuda::kMemoryTypeHost;
}

}  // namespace serverless_triton::loader
