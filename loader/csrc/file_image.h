// A checkpoint file opened for reading: its identity, its size, and the fastest descriptor that works on it.
// Move-only. Every const method may be called from any number of threads at once.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "unique_fd.h"

namespace serverless_triton::loader {

// Offsets, lengths and addresses of direct reads are multiples of this: no block device in use asks for more.
inline constexpr std::uint64_t kAlignmentBytes = 4096;

class FileImage {
  public:
    // Opens a regular file. O_DIRECT is used only where a real read through it succeeded: tmpfs and squashfs refuse it
    // at open, overlay may accept it there and fail later. Throws CheckpointNotFound or CheckpointUnreadable.
    [[nodiscard]] static FileImage open(const std::string& path);

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
    [[nodiscard]] dev_t device() const { return device_; }
    [[nodiscard]] std::uint64_t inode() const { return inode_; }
    [[nodiscard]] std::int64_t mtime_ns() const { return mtime_ns_; }
    [[nodiscard]] bool supports_direct() const { return static_cast<bool>(direct_fd_); }
    [[nodiscard]] int fd() const { return buffered_fd_.get(); }
    [[nodiscard]] int direct_fd() const { return direct_fd_.get(); }  // -1 unless supports_direct()

    // False once the file was written, truncated or extended after open(). Throws CheckpointUnreadable.
    [[nodiscard]] bool is_unchanged() const;

    // Whether the whole range is in the page cache, so that a buffered read costs no disk access.
    [[nodiscard]] bool is_resident(std::uint64_t offset, std::uint64_t length) const;

    // Fills `destination` from `offset` through the page cache. Throws CheckpointUnreadable, and CheckpointTruncated
    // where the file ends early.
    void read(std::uint64_t offset, std::span<std::byte> destination) const;

    // Both read as far as the file goes and return how many bytes that was, or a negated errno. The direct one reads
    // past the page cache, into memory that begins at a page and may be written up to its end, a multiple of
    // kAlignmentBytes; it may end short anywhere.
    [[nodiscard]] std::int64_t read_buffered(std::uint64_t offset, std::span<std::byte> destination) const;
    [[nodiscard]] std::int64_t read_direct(std::uint64_t offset, std::span<std::byte> destination) const;

  private:
    FileImage() = default;
    void probe_direct();
    [[nodiscard]] bool may_ask_mincore() const;
    [[nodiscard]] bool is_resident_by_mincore(std::uint64_t offset, std::uint64_t length) const;
    [[nodiscard]] bool is_resident_by_reading(std::uint64_t offset, std::uint64_t length) const;

    std::string path_;
    UniqueFd buffered_fd_;
    UniqueFd direct_fd_;
    std::uint64_t bytes_ = 0;
    dev_t device_ = 0;
    std::uint64_t inode_ = 0;
    std::int64_t mtime_ns_ = 0;
    uid_t owner_ = 0;
};

}  // namespace serverless_triton::loader
