// Files mapped at addresses that 2 MiB pages can serve. Move-only; not synchronised: one thread at a time may change
// it, reading and writing its bytes is free to all.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace serverless_triton::loader {

inline constexpr std::uint64_t kHugePageBytes = 2 * 1024 * 1024;
inline constexpr std::uint64_t kSmallPageBytes = 4096;

// A run of bytes of a file or of memory.
struct Piece {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
};

class AlignedMapping {
  public:
    // Reserves `bytes` of addresses, the first a multiple of 2 MiB, that cannot be touched until map() put something
    // there. Throws OutOfMemory.
    explicit AlignedMapping(std::uint64_t bytes);

    AlignedMapping(AlignedMapping&& other) noexcept;
    AlignedMapping& operator=(AlignedMapping&& other) noexcept;
    AlignedMapping(const AlignedMapping&) = delete;
    AlignedMapping& operator=(const AlignedMapping&) = delete;
    ~AlignedMapping();

    // Maps `piece` of the file at `offset` of this range, shared. Throws OutOfMemory where the kernel refuses,
    // std::invalid_argument where it would not fit.
    void map(int fd, Piece piece, std::uint64_t offset, int protection);

    [[nodiscard]] std::span<std::byte> span() const { return {data_, bytes_}; }

    // How many of these bytes are mapped by 2 MiB pages in this process now: what /proc/self/smaps says.
    [[nodiscard]] std::uint64_t huge_bytes() const;

  private:
    std::byte* data_ = nullptr;
    std::uint64_t bytes_ = 0;
};

// Whether `piece` lies within `bytes`.
[[nodiscard]] inline bool lies_within(Piece piece, std::uint64_t bytes) {
    return piece.offset <= bytes && piece.length <= bytes - piece.offset;
}

}  // namespace serverless_triton::loader
