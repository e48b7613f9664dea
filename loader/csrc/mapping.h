// Memory that checkpoints are read into or seen through without a store: one mmap, move-only and not synchronised. One
// thread at a time may change it; reading its bytes is free to all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace serverless_triton::loader {

class Mapping {
  public:
    // Both throw OutOfMemory where the kernel refuses. `bytes` may be 0: an empty mapping.

    // Zeroed private memory.
    [[nodiscard]] static Mapping anonymous(std::uint64_t bytes);
    // The file's pages until written; a write makes a private copy of that page and never reaches the file.
    [[nodiscard]] static Mapping copy_on_write(int fd, std::uint64_t bytes);

    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
    [[nodiscard]] std::span<std::byte> span() const { return {data_, bytes_}; }

  private:
    Mapping(int fd, std::uint64_t bytes, int flags);

    std::byte* data_ = nullptr;
    std::uint64_t bytes_ = 0;
};

}  // namespace serverless_triton::loader
