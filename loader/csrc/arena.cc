#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "checked.h"
#include "errors.h"
#include "numa.h"
#include "private_tmpfs.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace serverless_triton::loader {
namespace {

constexpr std::uint64_t kPrefaultStepBytes = 4 * kHugePageBytes;
constexpr std::uint64_t kMoveStepBytes = 4 * kHugePageBytes;

struct KindName {
    PageKind kind;
    std::string_view name;
};
constexpr std::array<KindName, 4> kKinds{{{PageKind::kHugetlb, "hugetlb"},
                                          {PageKind::kTmpfs, "tmpfs"},
                                          {PageKind::kMemfd, "memfd"},
                                          {PageKind::kSmall, "4k"}}};

[[noreturn]] void throw_unavailable(PageKind kind, const char* action) {
    throw PagesUnavailable("no arena of " + std::string(name_of(kind)) + " pages: " + action + ": " +
                           std::strerror(errno) + "; configure the machine for them or choose other pages");
}

std::uint64_t whole_pages(std::uint64_t bytes) {
    const auto rounded = checked_round_up(bytes, kHugePageBytes);
    if (bytes == 0 || !rounded)
        throw std::invalid_argument("an arena of " + std::to_string(bytes) + " bytes is not possible");
    return *rounded;
}

UniqueFd create_memory_file(PageKind kind, std::uint64_t bytes) {
    const unsigned huge = kind == PageKind::kHugetlb ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
    UniqueFd fd(::memfd_create("serverless-triton-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge));
    if (!fd)
        throw_unavailable(kind, "memfd_create");
    if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
        throw_unavailable(kind, "ftruncate");
    return fd;
}

// What is mapped writable stays so; nothing else ever will be.
void seal(PageKind kind, const UniqueFd& fd) {
    constexpr int kSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0)
        throw_unavailable(kind, "sealing");
}

void map_writable(PageKind kind, const UniqueFd& fd, AlignedMapping& memory) {
    try {
        memory.map(fd.get(), {0, memory.span().size()}, 0, PROT_READ | PROT_WRITE);
    } catch (const OutOfMemory&) {
        throw_unavailable(kind, "mmap");  // of hugetlb: the machine keeps fewer pages than the arena needs
    }
}

// Maps a new file of that kind and returns the descriptor for clients.
UniqueFd map_new_file(PageKind kind, AlignedMapping& memory) {
    const std::uint64_t bytes = memory.span().size();
    if (kind == PageKind::kTmpfs) {
        PrivateFile file = create_private_file(bytes);
        map_writable(kind, file.writable, memory);
        return std::move(file.read_only);
    }
    UniqueFd fd = create_memory_file(kind, bytes);
    map_writable(kind, fd, memory);
    seal(kind, fd);
    return fd;
}

void advise(PageKind kind, std::span<std::byte> memory) {
    // Only advice: a kernel without transparent huge pages refuses it, and small pages are what it has.
    if (kind == PageKind::kMemfd || kind == PageKind::kTmpfs)
        static_cast<void>(::madvise(memory.data(), memory.size(), MADV_HUGEPAGE));
    if (kind == PageKind::kSmall)
        static_cast<void>(::madvise(memory.data(), memory.size(), MADV_NOHUGEPAGE));
}

// Kernels before 5.14 refuse with EINVAL: there memory comes when it is first written.
void populate(std::span<std::byte> memory) {
    if (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0 || errno == EINVAL)
        return;
    throw OutOfMemory("no memory for another " + std::to_string(memory.size()) + " bytes of the arena: " +
                      std::strerror(errno) + "; free memory or lower the store's DRAM budget");
}

}  // namespace

std::string_view name_of(PageKind kind) {
    return std::ranges::find(kKinds, kind, &KindName::kind)->name;
}

std::optional<PageKind> page_kind_from(std::string_view name) {
    const auto* const found = std::ranges::find(kKinds, name, &KindName::name);
    return found == kKinds.end() ? std::nullopt : std::optional(found->kind);
}

Arena::Arena(std::uint64_t bytes, std::optional<PageKind> kind, const std::filesystem::path& node_root)
    : Arena(kind ? Arena(whole_pages(bytes), *kind, memory_nodes(node_root))
                 : best(whole_pages(bytes), memory_nodes(node_root))) {}

Arena::Arena(std::uint64_t bytes, PageKind kind, const std::vector<unsigned>& nodes) : kind_(kind), memory_(bytes) {
    client_fd_ = map_new_file(kind, memory_);
    advise(kind, span());
    if (nodes.size() > 1 && interleave(span(), nodes))
        nodes_ = nodes;
    populate(span().first(kHugePageBytes));
    span()[0] = std::byte{0};  // what a kernel that could not populate leaves to do
    if (memory_.huge_bytes() > 0)
        page_bytes_ = kHugePageBytes;
}

Arena Arena::best(std::uint64_t bytes, const std::vector<unsigned>& nodes) {
    for (const PageKind kind : {PageKind::kHugetlb, PageKind::kTmpfs, PageKind::kMemfd}) {
        try {
            Arena arena(bytes, kind, nodes);
            if (arena.page_bytes() == kHugePageBytes)
                return arena;
        } catch (const PagesUnavailable&) {
            continue;  // the next kind is the answer
        }
    }
    return {bytes, PageKind::kSmall, nodes};
}

std::span<std::byte> Arena::part(Piece piece) const {
    if (!lies_within(piece, bytes()))
        throw std::invalid_argument(std::to_string(piece.length) + " bytes at " + std::to_string(piece.offset) +
                                    " do not lie within the arena");
    return span().subspan(piece.offset, piece.length);
}

void Arena::prefault(std::uint64_t begin, std::uint64_t end, ReadJob& job) const {
    if (begin > end || begin % kSmallPageBytes != 0)
        throw std::invalid_argument("a range of whole pages is needed");
    std::span<std::byte> memory = part({begin, end - begin});
    while (!memory.empty()) {
        job.proceed();
        const std::size_t step = std::min<std::size_t>(kPrefaultStepBytes, memory.size());
        populate(memory.first(step));
        job.add_done(step);
        memory = memory.subspan(step);
    }
}

void Arena::move(std::uint64_t source, std::uint64_t target, std::uint64_t length, ReadJob& job) const {
    const std::span<std::byte> from = part({source, length});
    const std::span<std::byte> to = part({target, length});
    for (std::uint64_t moved = 0; moved < length;) {
        job.proceed();
        const std::uint64_t step = std::min(kMoveStepBytes, length - moved);
        // Towards higher addresses the end goes first, so that no byte is overwritten before it was moved.
        const std::uint64_t at = target < source ? moved : length - moved - step;
        std::memmove(to.data() + at, from.data() + at, step);
        job.add_done(step);
        moved += step;
    }
}

void Arena::write(std::uint64_t offset, std::span<const std::byte> bytes) const {
    std::ranges::copy(bytes, part({offset, bytes.size()}).begin());
}

Digest Arena::hash(std::uint64_t offset, std::uint64_t length) const {
    return xxh3_128(part({offset, length}));
}

}  // namespace serverless_triton::loader
