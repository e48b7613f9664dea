// Memory that checkpoints are read into or seen through. Mapping owns one mmap; MemoryFile owns an anonymous file that
// the store fills, seals and hands to its clients as a descriptor through which nobody can ever write.
// Both are move-only and not synchronised: one thread at a time may change them; reading their bytes is free to all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "unique_fd.h"

namespace serverless_triton::loader {

class Mapping {
  public:
    // All throw OutOfMemory where the kernel refuses. `bytes` may be 0: an empty mapping.

    // Zeroed private memory.
    [[nodiscard]] static Mapping anonymous(std::uint64_t bytes);
    // The pages of a sealed memory file, never writable, page tables filled at once.
    [[nodiscard]] static Mapping read_only(int fd, std::uint64_t bytes);
    // The file's pages until written; a write makes a private copy of that page and never reaches the file.
    [[nodiscard]] static Mapping copy_on_write(int fd, std::uint64_t bytes);
    // The file's pages, shared and writable.
    [[nodiscard]] static Mapping writable(int fd, std::uint64_t bytes);

    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
    [[nodiscard]] bool is_writable() const { return is_writable_; }
    [[nodiscard]] std::span<std::byte> span() const { return {data_, bytes_}; }

  private:
    Mapping(int fd, std::uint64_t bytes, int protection, int flags);
    void fault_in() const;

    std::byte* data_ = nullptr;
    std::uint64_t bytes_ = 0;
    bool is_writable_ = false;
};

class MemoryFile {
  public:
    // `bytes` of zeroed memory, mapped writable in this process until seal(). Throws OutOfMemory.
    explicit MemoryFile(std::uint64_t bytes);

    // The bytes to fill. Throws std::logic_error after seal().
    [[nodiscard]] std::span<std::byte> span() const;

    // Drops the writable mapping and forbids every later write, resize and unseal, through whichever descriptor.
    // Throws OutOfMemory where the kernel refuses.
    void seal();

    [[nodiscard]] int fd() const { return fd_.get(); }
    [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

  private:
    UniqueFd fd_;
    std::uint64_t bytes_;
    std::optional<Mapping> mapping_;
};

}  // namespace serverless_triton::loader
