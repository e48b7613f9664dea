#include "pinned_memory.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "file_image.h"

namespace serverless_triton::loader {
namespace {

void* writable(const std::byte* bytes) {
    return const_cast<std::byte*>(bytes);  // the driver's signature; it writes nothing there
}

// The driver pins whole pages, and older ones insist on being asked for them.
std::uint64_t whole_pages(std::uint64_t bytes) {
    return (bytes + kAlignmentBytes - 1) & ~(kAlignmentBytes - 1);
}

}  // namespace

RegisteredMemory::RegisteredMemory(std::span<const std::byte> memory, std::uint64_t step_bytes)
    : memory_(memory), step_bytes_(step_bytes) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignmentBytes == 0;
    if (!aligned || step_bytes == 0 || step_bytes % kAlignmentBytes != 0)
        throw std::invalid_argument("memory to register must begin at a page and go in steps of whole pages");
    steps_.resize((memory.size() + step_bytes - 1) / step_bytes, Step::kUnknown);
}

// A refusal leaves nothing that could be done; the pages stay pinned until the process ends.
RegisteredMemory::~RegisteredMemory() {
    if (!device_)
        return;
    const GpuDevice::Current current(*device_, std::nothrow);
    for (std::size_t i = 0; i < steps_.size(); ++i) {
        if (steps_[i] == Step::kRegistered)
            static_cast<void>(device_->driver().host_unregister.attempt(writable(bytes_of(i).data())));
    }
}

std::uint64_t RegisteredMemory::register_from(const std::shared_ptr<const GpuDevice>& device, const std::byte* begin,
                                              std::uint64_t length) {
    const std::less<> before;  // defined for pointers into different memory, too
    if (before(begin, memory_.data()) || !before(begin, memory_.data() + memory_.size()))
        return 0;
    const auto step = static_cast<std::size_t>(static_cast<std::uint64_t>(begin - memory_.data()) / step_bytes_);
    const std::span<const std::byte> bytes = bytes_of(step);
    const std::lock_guard lock(mutex_);
    if (steps_[step] == Step::kUnknown) {
        const auto result = device->driver().host_register.attempt(writable(bytes.data()), whole_pages(bytes.size()),
                                                                   cuda::kHostRegisterPortable);
        steps_[step] = result == cuda::kSuccess ? Step::kRegistered : Step::kRefused;
        if (result == cuda::kSuccess && !device_)
            device_ = device;
    }
    if (steps_[step] == Step::kRefused)
        return 0;
    return std::min(length, static_cast<std::uint64_t>(bytes.data() + bytes.size() - begin));
}

std::uint64_t RegisteredMemory::registered_bytes() const {
    const std::lock_guard lock(mutex_);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < steps_.size(); ++i)
        bytes += steps_[i] == Step::kRegistered ? bytes_of(i).size() : 0;
    return bytes;
}

std::span<const std::byte> RegisteredMemory::bytes_of(std::size_t step) const {
    const std::uint64_t offset = step * step_bytes_;
    return memory_.subspan(offset, std::min(step_bytes_, memory_.size() - offset));
}

PinnedBuffer::PinnedBuffer(std::shared_ptr<const GpuDevice> device, std::uint64_t bytes) : device_(std::move(device)) {
    void* memory = nullptr;
    device_->driver().host_alloc(&memory, bytes, cuda::kHostAllocPortable);
    span_ = {static_cast<std::byte*>(memory), bytes};
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : device_(std::move(other.device_)), span_(std::exchange(other.span_, {})) {}

PinnedBuffer::~PinnedBuffer() {
    if (span_.empty())
        return;
    const GpuDevice::Current current(*device_, std::nothrow);
    static_cast<void>(device_->driver().host_free.attempt(span_.data()));
}

}  // namespace serverless_triton::loader
