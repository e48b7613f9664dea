#include "aligned_mapping.h"

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "checked.h"
#include "errors.h"
#include "smaps.h"

namespace serverless_triton::loader {
namespace {

[[noreturn]] void throw_unmappable(std::uint64_t bytes, int error) {
    throw OutOfMemory("cannot map " + std::to_string(bytes) + " bytes of memory: " + std::strerror(error) +
                      "; free memory or lower the store's DRAM budget");
}

std::byte* round_up(std::byte* address) {
    const auto number = reinterpret_cast<std::uintptr_t>(address);
    return address + ((kHugePageBytes - number % kHugePageBytes) % kHugePageBytes);
}

}  // namespace

AlignedMapping::AlignedMapping(std::uint64_t bytes) : bytes_(bytes) {
    if (bytes == 0)
        return;
    const auto room = checked_round_up(bytes, kSmallPageBytes);
    const auto reserved = room ? checked_add(*room, kHugePageBytes) : std::nullopt;
    if (!reserved)
        throw_unmappable(bytes, EOVERFLOW);
    void* address = ::mmap(nullptr, *reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        throw_unmappable(bytes, errno);
    auto* const begin = static_cast<std::byte*>(address);
    std::byte* const end = begin + *reserved;
    data_ = round_up(begin);
    if (data_ != begin)
        ::munmap(begin, static_cast<std::size_t>(data_ - begin));
    if (data_ + *room != end)
        ::munmap(data_ + *room, static_cast<std::size_t>(end - (data_ + *room)));
}

AlignedMapping::AlignedMapping(AlignedMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

AlignedMapping& AlignedMapping::operator=(AlignedMapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

AlignedMapping::~AlignedMapping() {
    if (data_ != nullptr)
        ::munmap(data_, bytes_);
}

void AlignedMapping::map(int fd, Piece piece, std::uint64_t offset, int protection) {
    if (!lies_within({offset, piece.length}, bytes_) || offset % kSmallPageBytes != 0)
        throw std::invalid_argument("a piece does not fit where it should be mapped");
    if (piece.length == 0)
        return;
    void* const address =
        ::mmap(data_ + offset, piece.length, protection, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(piece.offset));
    if (address == MAP_FAILED)
        throw_unmappable(piece.length, errno);
}

std::uint64_t AlignedMapping::huge_bytes() const {
    return huge_bytes_of(data_, bytes_);
}

}  // namespace serverless_triton::loader
