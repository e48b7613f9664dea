#include "file_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "errors.h"
#include "mapping.h"

namespace serverless_triton::loader {
namespace {

[[noreturn]] void throw_unreadable(const std::string& path, const char* action, int error) {
    throw CheckpointUnreadable("cannot " + std::string(action) + " " + path + ": " + std::strerror(error) +
                               "; check its permissions and the health of the disk");
}

UniqueFd open_for_reading(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd)
        return fd;
    if (errno == ENOENT || errno == ENOTDIR) {
        throw CheckpointNotFound("there is no file " + path + "; check the path");
    }
    throw_unreadable(path, "open", errno);
}

struct stat stat_of(int fd, const std::string& path) {
    struct stat status{};
    if (::fstat(fd, &status) != 0)
        throw_unreadable(path, "stat", errno);
    return status;
}

std::int64_t mtime_ns_of(const struct stat& status) {
    return std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

// pread that continues after signals and short reads.
std::int64_t read_fully(int fd, std::byte* to, std::uint64_t length, std::uint64_t offset) {
    std::uint64_t done = 0;
    while (done < length) {
        const ssize_t n = ::pread(fd, to + done, length - done, static_cast<off_t>(offset + done));
        if (n == 0)
            break;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += static_cast<std::uint64_t>(n);
    }
    return static_cast<std::int64_t>(done);
}

std::uint64_t page_bytes() {
    static const auto bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    return bytes;
}

[[noreturn]] void throw_shrunk(const std::string& path) {
    throw CheckpointTruncated(path + " became shorter while it was read; load it again once it is complete");
}

}  // namespace

FileImage FileImage::open(const std::string& path) {
    FileImage image;
    image.path_ = path;
    image.buffered_fd_ = open_for_reading(path);
    const struct stat status = stat_of(image.fd(), path);
    if (!S_ISREG(status.st_mode)) {
        throw CheckpointUnreadable(path + " is not a regular file; give a .safetensors file or its directory");
    }
    image.bytes_ = static_cast<std::uint64_t>(status.st_size);
    image.device_ = status.st_dev;
    image.inode_ = status.st_ino;
    image.mtime_ns_ = mtime_ns_of(status);
    image.owner_ = status.st_uid;
    image.probe_direct();
    return image;
}

void FileImage::probe_direct() {
    direct_fd_ = UniqueFd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
    if (!direct_fd_)
        return;
    struct stat status{};
    // The name may lead to another file by now; a read from that one would mix two checkpoints.
    const bool same_file =
        ::fstat(direct_fd_.get(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
    Mapping block = Mapping::anonymous(kAlignmentBytes);
    if (!same_file || ::pread(direct_fd_.get(), block.data(), kAlignmentBytes, 0) < 0)
        direct_fd_.reset();
}

bool FileImage::is_unchanged() const {
    const struct stat status = stat_of(fd(), path_);
    return static_cast<std::uint64_t>(status.st_size) == bytes_ && mtime_ns_of(status) == mtime_ns_;
}

// Since Linux 5.2 mincore() answers "resident" to whoever may neither own nor write the file (CVE-2019-5489).
bool FileImage::may_ask_mincore() const {
    return owner_ == ::geteuid() || ::faccessat(AT_FDCWD, path_.c_str(), W_OK, AT_EACCESS) == 0;
}

bool FileImage::is_resident(std::uint64_t offset, std::uint64_t length) const {
    if (length == 0)
        return true;
    return may_ask_mincore() ? is_resident_by_mincore(offset, length) : is_resident_by_reading(offset, length);
}

bool FileImage::is_resident_by_mincore(std::uint64_t offset, std::uint64_t length) const {
    const std::uint64_t begin = offset / page_bytes() * page_bytes();
    const std::uint64_t mapped_bytes = offset + length - begin;
    void* address = ::mmap(nullptr, mapped_bytes, PROT_READ, MAP_SHARED, fd(), static_cast<off_t>(begin));
    if (address == MAP_FAILED)
        return false;
    std::vector<unsigned char> pages((mapped_bytes + page_bytes() - 1) / page_bytes());
    const bool known = ::mincore(address, mapped_bytes, pages.data()) == 0;
    ::munmap(address, mapped_bytes);
    return known && std::ranges::all_of(pages, [](unsigned char page) { return (page & 1) != 0; });
}

bool FileImage::is_resident_by_reading(std::uint64_t offset, std::uint64_t length) const {
    std::byte probe{};
    iovec vector{&probe, 1};
    for (std::uint64_t at = offset; at < offset + length; at += page_bytes()) {
        if (::preadv2(fd(), &vector, 1, static_cast<off_t>(at), RWF_NOWAIT) != 1)
            return false;
    }
    return true;
}

void FileImage::read(std::uint64_t offset, std::span<std::byte> destination) const {
    const std::int64_t n = read_buffered(offset, destination);
    if (n < 0)
        throw_unreadable(path_, "read", static_cast<int>(-n));
    if (static_cast<std::uint64_t>(n) < destination.size())
        throw_shrunk(path_);
}

std::int64_t FileImage::read_buffered(std::uint64_t offset, std::span<std::byte> destination) const {
    return read_fully(fd(), destination.data(), destination.size(), offset);
}

std::int64_t FileImage::read_direct(std::uint64_t offset, std::span<std::byte> destination) const {
    const ssize_t n = ::pread(direct_fd(), destination.data(), destination.size(), static_cast<off_t>(offset));
    return n < 0 ? -errno : n;
}

}  // namespace serverless_triton::loader
