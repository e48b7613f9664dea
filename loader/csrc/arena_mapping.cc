#include "arena_mapping.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "checked.h"
#include "errors.h"

namespace serverless_triton::loader {
namespace {

// The kernel maps this much around each fault on small pages. One read in each such window takes 7 ms for 270 MB where
// MADV_POPULATE_READ takes its pages one by one, 20 ms.
constexpr std::uint64_t kFaultAroundBytes = 64 * 1024;

struct stat status_of(int fd) {
    struct stat status{};
    if (::fstat(fd, &status) != 0)
        throw std::invalid_argument(std::string("the arena's descriptor is of no use: ") + std::strerror(errno));
    return status;
}

UniqueFd duplicate(int fd) {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
        throw std::invalid_argument(std::string("the arena's descriptor is of no use: ") + std::strerror(errno));
    return copy;
}

std::shared_ptr<const AlignedMapping> map_all(int fd, std::uint64_t bytes) {
    if (static_cast<std::uint64_t>(status_of(fd).st_size) < bytes)
        throw std::invalid_argument("the arena's file is smaller than its store says");
    auto memory = std::make_shared<AlignedMapping>(bytes);
    memory->map(fd, {0, bytes}, 0, PROT_READ);
    return memory;
}

void touch(std::span<const std::byte> memory) {
    const volatile std::byte* const bytes = memory.data();
    for (std::uint64_t at = 0; at < memory.size(); at += kFaultAroundBytes)
        static_cast<void>(bytes[at]);
}

bool is_hugetlb(int fd) {
    struct statfs file_system{};
    return ::fstatfs(fd, &file_system) == 0 && file_system.f_type == HUGETLBFS_MAGIC;
}

// Before which offset the file may have memory. hugetlb tells how much it has, not where; a store takes the low
// addresses first.
std::uint64_t end_of_data(int fd) {
    constexpr std::uint64_t kBlockBytes = 512;
    const struct stat status = status_of(fd);
    if (is_hugetlb(fd))
        return static_cast<std::uint64_t>(status.st_blocks) * kBlockBytes;
    return static_cast<std::uint64_t>(status.st_size);
}

// The next run of memory that the file has, from `offset` on.
std::optional<Piece> next_data(int fd, std::uint64_t offset) {
    const off_t begin = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
    const off_t end = begin < 0 ? begin : ::lseek(fd, begin, SEEK_HOLE);
    if (end <= begin)
        return std::nullopt;
    return Piece{static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end - begin)};
}

std::uint64_t total_bytes(std::span<const Piece> pieces) {
    std::optional<std::uint64_t> bytes = 0;
    for (const Piece& piece : pieces)
        bytes = bytes ? checked_add(*bytes, piece.length) : bytes;
    if (!bytes)
        throw std::invalid_argument("the pieces of an image are larger than any memory");
    return *bytes;
}

void check_piece(const Piece& piece, std::uint64_t bytes) {
    if (!lies_within(piece, bytes) || piece.offset % kSmallPageBytes != 0 || piece.length % kSmallPageBytes != 0)
        throw std::invalid_argument(std::to_string(piece.length) + " bytes at " + std::to_string(piece.offset) +
                                    " are no whole pages of the arena");
}

}  // namespace

ArenaMapping::ArenaMapping(int fd, std::uint64_t bytes)
    : fd_(duplicate(fd)), memory_(map_all(fd, bytes)), populated_((bytes + kHugePageBytes - 1) / kHugePageBytes) {}

ArenaSlice ArenaMapping::scattered(int fd, std::span<const Piece> pieces) {
    const auto bytes = static_cast<std::uint64_t>(status_of(fd).st_size);
    auto memory = std::make_shared<AlignedMapping>(total_bytes(pieces));
    std::uint64_t offset = 0;
    for (const Piece& piece : pieces) {
        check_piece(piece, bytes);
        memory->map(fd, piece, offset, PROT_READ);
        offset += piece.length;
    }
    touch(memory->span());
    return {std::move(memory), {0, offset}};
}

void ArenaMapping::populate(ReadJob& job) {
    const std::uint64_t last = std::min(end_of_data(fd_.get()), bytes());
    for (auto data = next_data(fd_.get(), 0); data; data = next_data(fd_.get(), data->offset + data->length)) {
        const std::uint64_t end = std::min(data->offset + data->length, last);
        for (std::uint64_t at = data->offset; at < end; at += kHugePageBytes) {
            job.proceed();
            fault_in({at, std::min(kHugePageBytes, end - at)});
        }
    }
}

ArenaSlice ArenaMapping::slice(std::uint64_t offset, std::uint64_t length) {
    const Piece piece{offset, length};
    if (!lies_within(piece, bytes()))
        throw std::invalid_argument("the slice does not lie within the arena");
    fault_in(piece);
    return {memory_, piece};
}

// By granules of 2 MiB, leaving out those that were filled whole before.
void ArenaMapping::fault_in(Piece piece) {
    const std::uint64_t end = piece.offset + piece.length;
    for (std::uint64_t at = piece.offset; at < end;) {
        const std::size_t granule = at / kHugePageBytes;
        const std::uint64_t granule_end = std::min((granule + 1) * kHugePageBytes, bytes());
        const std::uint64_t until = std::min(granule_end, end);
        if (!is_populated(granule)) {
            touch(memory_->span().subspan(at, until - at));
            if (at % kHugePageBytes == 0 && until == granule_end) {
                const std::lock_guard lock(mutex_);
                populated_[granule] = true;
            }
        }
        at = until;
    }
}

bool ArenaMapping::is_populated(std::size_t granule) const {
    const std::lock_guard lock(mutex_);
    return populated_[granule];
}

}  // namespace serverless_triton::loader
