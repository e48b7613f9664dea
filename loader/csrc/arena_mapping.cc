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
#include <thread>

#include "checked.h"
#include "errors.h"
#include "workers.h"

namespace serverless_triton::loader {
namespace {

// The kernel maps this much around each fault on small pages. One read in each such window takes 7 ms for 270 MB where
// MADV_POPULATE_READ takes its pages one by one, 20 ms.
constexpr std::uint64_t kFaultAroundBytes = 64 * 1024;
// Faults of one process run side by side: 2.2 GB in 4 KB pages take 120 ms of one core.
constexpr unsigned kMaxTouchingThreads = 4;
constexpr std::uint64_t kTouchTaskBytes = 16 * kHugePageBytes;
// How much populate() touches between two looks at its job.
constexpr std::uint64_t kPopulateStepBytes = 128 * kHugePageBytes;

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

void touch_task(std::span<const std::byte> memory) {
    const volatile std::byte* const bytes = memory.data();
    for (std::uint64_t at = 0; at < memory.size(); at += kFaultAroundBytes)
        static_cast<void>(bytes[at]);
}

void touch(std::span<const std::byte> memory) {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1U, kMaxTouchingThreads);
    const std::size_t tasks = (memory.size() + kTouchTaskBytes - 1) / kTouchTaskBytes;
    share_tasks(threads, tasks, [&](const auto& next) {
        for (std::size_t task = next(); task < tasks; task = next()) {
            const std::size_t begin = task * kTouchTaskBytes;
            touch_task(memory.subspan(begin, std::min<std::size_t>(kTouchTaskBytes, memory.size() - begin)));
        }
    });
}

bool is_hugetlb(int fd) {
    struct statfs file_system{};
    return ::fstatfs(fd, &file_system) == 0 && file_system.f_type == HUGETLBFS_MAGIC;
}

// Whether holes are told from memory. Of a hugetlb file SEEK_DATA calls all of it data, and a read of a hole takes a
// page for it; how much memory the file has is known, so holes are ruled out only where it has all.
bool tells_its_holes(int fd) {
    constexpr std::uint64_t kBlockBytes = 512;
    const struct stat status = status_of(fd);
    return !is_hugetlb(fd) ||
           static_cast<std::uint64_t>(status.st_blocks) * kBlockBytes >= static_cast<std::uint64_t>(status.st_size);
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
    if (!tells_its_holes(fd_.get()))
        return;
    for (auto data = next_data(fd_.get(), 0); data; data = next_data(fd_.get(), data->offset + data->length)) {
        const std::uint64_t end = std::min(data->offset + data->length, bytes());
        for (std::uint64_t at = data->offset; at < end; at += kPopulateStepBytes) {
            job.proceed();
            fault_in({at, std::min(kPopulateStepBytes, end - at)});
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

// Leaves out what was filled before, by granules of 2 MiB.
void ArenaMapping::fault_in(Piece piece) {
    for (Piece run = next_unpopulated(piece); run.length > 0; run = next_unpopulated(piece)) {
        touch(memory_->span().subspan(run.offset, run.length));
        mark_populated(run);
        const std::uint64_t end = run.offset + run.length;
        piece = {end, piece.offset + piece.length - end};
    }
}

// The first run of granules, or parts of such, that were not filled whole; empty at the end where there is none.
Piece ArenaMapping::next_unpopulated(Piece piece) const {
    const std::lock_guard lock(mutex_);
    const std::uint64_t end = piece.offset + piece.length;
    const auto past_run = [&](std::uint64_t at, bool populated) {
        while (at < end && populated_[at / kHugePageBytes] == populated)
            at = std::min((at / kHugePageBytes + 1) * kHugePageBytes, end);
        return at;
    };
    const std::uint64_t begin = past_run(piece.offset, true);
    return {begin, past_run(begin, false) - begin};
}

void ArenaMapping::mark_populated(Piece piece) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t end = piece.offset + piece.length;
    for (std::uint64_t granule = (piece.offset + kHugePageBytes - 1) / kHugePageBytes;
         std::min((granule + 1) * kHugePageBytes, bytes()) <= end && granule < populated_.size(); ++granule)
        populated_[granule] = true;
}

}  // namespace serverless_triton::loader
