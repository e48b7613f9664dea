#include "gpu_lane.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace serverless_triton::loader {
namespace {

constexpr unsigned kEventFlags = cuda::kEventDisableTiming | cuda::kEventBlockingSync;

}  // namespace

GpuLane::GpuLane(std::shared_ptr<const GpuDevice> device, unsigned depth, std::uint64_t staging_bytes)
    : device_(std::move(device)), staging_bytes_(staging_bytes), slots_(depth) {
    if (depth == 0 || staging_bytes == 0)
        throw std::invalid_argument("a lane needs room for at least one copy");
    device_->driver().stream_create(&stream_, cuda::kStreamNonBlocking);
}

// What fails here has failed in drain() before, or nobody waits for these copies any more.
GpuLane::~GpuLane() {
    const GpuDevice::Current current(*device_, std::nothrow);
    const cuda::Driver& driver = device_->driver();
    static_cast<void>(driver.stream_synchronize.attempt(stream_));
    for (const Slot& slot : slots_) {
        if (slot.done != nullptr)
            static_cast<void>(driver.event_destroy.attempt(slot.done));
    }
    static_cast<void>(driver.stream_destroy.attempt(stream_));
}

void GpuLane::copy_registered(cuda::DevicePtr target, std::span<const std::byte> bytes) {
    send(next_slot(), target, bytes);
}

void GpuLane::copy_staged(cuda::DevicePtr target, std::span<const std::byte> bytes) {
    Slot& slot = next_slot();
    if (!slot.buffer)
        slot.buffer.emplace(device_, staging_bytes_);
    const std::span<std::byte> staged = slot.buffer->span().first(bytes.size());
    std::ranges::copy(bytes, staged.begin());
    send(slot, target, staged);
}

void GpuLane::drain() {
    device_->driver().stream_synchronize(stream_);
    for (Slot& slot : slots_)
        slot.is_busy = false;
}

// The slot that was used longest ago, free again once its copy is done.
GpuLane::Slot& GpuLane::next_slot() {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    if (slot.done == nullptr)
        device_->driver().event_create(&slot.done, kEventFlags);
    if (slot.is_busy)
        device_->driver().event_synchronize(slot.done);
    slot.is_busy = false;
    return slot;
}

void GpuLane::send(Slot& slot, cuda::DevicePtr target, std::span<const std::byte> bytes) {
    device_->driver().copy_to_device(target, bytes.data(), bytes.size(), stream_);
    slot.is_busy = true;
    device_->driver().event_record(slot.done, stream_);
}

}  // namespace serverless_triton::loader
