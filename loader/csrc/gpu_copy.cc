#include "gpu_copy.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "checked.h"
#include "chunk_hasher.h"
#include "errors.h"

namespace serverless_triton::loader {

GpuCopy::GpuCopy(std::shared_ptr<const DeviceMemory> target, std::vector<std::uint64_t> offsets,
                 std::shared_ptr<RegisteredMemory> registered, const GpuCopyOptions& options)
    : target_(std::move(target)), offsets_(std::move(offsets)), registered_(std::move(registered)) {
    if (options.streams == 0)
        throw std::invalid_argument("a copy needs at least one stream");
    const GpuDevice::Current current(*target_->device());
    for (unsigned i = 0; i < options.streams; ++i)
        lanes_.push_back(std::make_unique<Lane>(target_->device(), options.depth, options.staging_bytes));
}

GpuCopy::~GpuCopy() = default;

void GpuCopy::chunk_ready(std::size_t file_index, std::uint64_t offset, std::uint64_t length, const std::byte* bytes) {
    if (is_cancelled_ || has_failed_)
        return;
    try {
        send(checked_target(file_index, offset, length), {bytes, length});
    } catch (...) {
        keep(std::current_exception());
    }
}

void GpuCopy::copy(std::size_t file_index, std::span<const std::span<const std::byte>> pieces, ReadJob& job) {
    std::uint64_t file_offset = 0;
    for (const std::span<const std::byte> piece : pieces) {
        for (std::uint64_t at = 0; at < piece.size(); at += kChunkBytes) {
            if (job.is_cancelled())
                cancel();
            if (is_cancelled_ || has_failed_)
                return;
            const std::uint64_t length = std::min(kChunkBytes, piece.size() - at);
            chunk_ready(file_index, file_offset + at, length, piece.data() + at);
            job.add_done(length);
        }
        file_offset += piece.size();
    }
}

void GpuCopy::restart() {
    try {
        drain();
    } catch (...) {
        keep(std::current_exception());
    }
    copied_bytes_ = 0;
}

void GpuCopy::finish() {
    drain();
    if (failure_)
        std::rethrow_exception(failure_);
    if (is_cancelled_)
        throw ReadCancelled("the copy to the GPU was cancelled; ask again if it is still wanted");
}

// All on one stream: a chunk that spans two registered steps, or that needs staging, is several copies.
void GpuCopy::send(cuda::DevicePtr target, std::span<const std::byte> bytes) {
    const GpuDevice::Current current(*target_->device());
    Lane& lane = *lanes_[next_lane_++ % lanes_.size()];
    const std::lock_guard lock(lane.mutex);
    while (!bytes.empty()) {
        std::uint64_t length =
            registered_ ? registered_->register_from(target_->device(), bytes.data(), bytes.size()) : 0;
        if (length != 0) {
            lane.stream.copy_registered(target, bytes.first(length));
        } else {
            length = std::min<std::uint64_t>(bytes.size(), lane.stream.staging_bytes());
            lane.stream.copy_staged(target, bytes.first(length));
        }
        target += length;
        bytes = bytes.subspan(length);
        copied_bytes_ += length;
    }
}

void GpuCopy::drain() {
    const GpuDevice::Current current(*target_->device());
    for (const std::unique_ptr<Lane>& lane : lanes_) {
        try {
            const std::lock_guard lock(lane->mutex);
            lane->stream.drain();
        } catch (...) {
            keep(std::current_exception());
        }
    }
}

cuda::DevicePtr GpuCopy::checked_target(std::size_t file_index, std::uint64_t offset, std::uint64_t length) const {
    if (file_index >= offsets_.size())
        throw std::out_of_range("the copy to the GPU knows no file of that number");
    const auto begin = checked_add(offsets_[file_index], offset);
    const auto end = begin ? checked_add(*begin, length) : std::nullopt;
    if (!end || *end > target_->bytes())
        throw std::out_of_range("a chunk lies past the end of the GPU's memory for it");
    return target_->address() + *begin;
}

void GpuCopy::keep(std::exception_ptr failure) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_)
        failure_ = std::move(failure);
    has_failed_ = true;
}

}  // namespace serverless_triton::loader
