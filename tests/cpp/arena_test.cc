#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arena_mapping.h"
#include "check.h"
#include "errors.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kArenaBytes = 4 * kHugePageBytes;
constexpr PageKind kKinds[] = {PageKind::kHugetlb, PageKind::kTmpfs, PageKind::kMemfd, PageKind::kSmall};

// Whatever kinds this machine has are tested; small pages it has always.
std::vector<PageKind> kinds_of_this_machine() {
    std::vector<PageKind> kinds;
    for (const PageKind kind : kKinds) {
        try {
            static_cast<void>(Arena(kHugePageBytes, kind));
            kinds.push_back(kind);
        } catch (const PagesUnavailable& error) {
            std::fprintf(stderr, "not tested: %s\n", error.what());
        }
    }
    CHECK(std::ranges::find(kinds, PageKind::kSmall) != kinds.end());
    return kinds;
}

std::span<const std::byte> as_bytes(const std::string& text) {
    return std::as_bytes(std::span(text));
}

bool holds(std::span<const std::byte> bytes, const std::string& text) {
    return std::ranges::equal(bytes, as_bytes(text));
}

bool is_aligned(const std::byte* address) {
    return reinterpret_cast<std::uintptr_t>(address) % kHugePageBytes == 0;
}

void kinds_have_names() {
    for (const PageKind kind : kKinds)
        CHECK(page_kind_from(name_of(kind)) == kind);
    CHECK(!page_kind_from("auto") && !page_kind_from(""));
}

void what_the_store_writes_its_clients_see(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    ArenaMapping mapping(arena.client_fd(), kArenaBytes);
    const std::string text = pattern(10'000);
    arena.write(kHugePageBytes - 5'000, as_bytes(text));
    const ArenaSlice slice = mapping.slice(kHugePageBytes - 5'000, text.size());
    CHECK(holds(slice.span(), text));
    CHECK(arena.hash(kHugePageBytes - 5'000, text.size()) == xxh3_128(as_bytes(text)));
    CHECK(is_aligned(arena.span().data()) && is_aligned(mapping.slice(0, 1).span().data()));
}

void clients_can_never_write(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    const std::string again = "/proc/self/fd/" + std::to_string(arena.client_fd());
    const UniqueFd reopened(::open(again.c_str(), O_RDWR | O_CLOEXEC));
    const UniqueFd truncated(::open(again.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
    CHECK(!truncated);
    for (const int fd : {arena.client_fd(), reopened.get()}) {
        CHECK(::pwrite(fd, "x", 1, 0) == -1);
        CHECK(::mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
        CHECK(::ftruncate(fd, 0) == -1 && ::ftruncate(fd, 2 * kArenaBytes) == -1);
        CHECK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == -1);
    }
    void* const mapped = ::mmap(nullptr, kArenaBytes, PROT_READ, MAP_SHARED, arena.client_fd(), 0);
    CHECK(mapped != MAP_FAILED && ::mprotect(mapped, kArenaBytes, PROT_READ | PROT_WRITE) == -1);
    ::munmap(mapped, kArenaBytes);
}

void a_forked_child_writes_to_the_same_memory(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    const std::string text = pattern(100);
    const pid_t child = ::fork();
    if (child == 0) {
        arena.write(7, as_bytes(text));
        ::_exit(0);
    }
    int status = 1;
    CHECK(::waitpid(child, &status, 0) == child && status == 0);
    CHECK(holds(arena.span().subspan(7, text.size()), text));
}

void a_move_keeps_every_byte_where_source_and_target_overlap(PageKind kind) {
    constexpr std::uint64_t kBytes = 11 * kHugePageBytes;
    const Arena arena(2 * kBytes, kind);
    const std::string text = pattern(kBytes);
    for (const auto& [source, target] : {std::pair{kHugePageBytes, 0UL}, std::pair{0UL, kHugePageBytes}}) {
        ReadJob job;
        arena.write(source, as_bytes(text));
        arena.move(source, target, kBytes, job);
        CHECK(holds(arena.span().subspan(target, kBytes), text));
        CHECK(job.bytes_done() == kBytes);
    }
}

void pages_are_what_the_kernel_says(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    ReadJob job;
    arena.prefault(0, kArenaBytes, job);
    CHECK(job.bytes_done() == kArenaBytes);
    CHECK((arena.huge_bytes() > 0) == (arena.page_bytes() == kHugePageBytes));
    if (kind == PageKind::kSmall)
        CHECK(arena.huge_bytes() == 0);
    if (kind == PageKind::kHugetlb)
        CHECK(arena.huge_bytes() == kArenaBytes);
}

void prefaulting_leaves_what_is_written(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    const std::string text = pattern(kArenaBytes);
    arena.write(0, as_bytes(text));
    ReadJob job;
    arena.prefault(0, kArenaBytes, job);
    CHECK(holds(arena.span(), text));
}

void cancelled_work_stops(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    ArenaMapping mapping(arena.client_fd(), kArenaBytes);
    ReadJob job;
    job.cancel();
    CHECK_THROWS(ReadCancelled, arena.prefault(0, kArenaBytes, job));
    CHECK_THROWS(ReadCancelled, arena.move(0, kHugePageBytes, kHugePageBytes, job));
    CHECK_THROWS(ReadCancelled, mapping.populate(job));
    CHECK(job.bytes_done() == 0);
}

void a_slice_outlives_the_mapping_and_the_arena(PageKind kind) {
    const std::string text = pattern(4096);
    std::optional<Arena> arena(std::in_place, kArenaBytes, kind);
    std::optional<ArenaMapping> mapping(std::in_place, arena->client_fd(), kArenaBytes);
    arena->write(4096, as_bytes(text));
    const ArenaSlice slice = mapping->slice(4096, 4096);
    mapping.reset();
    arena.reset();
    CHECK(holds(slice.span(), text));
}

void scattered_pieces_are_seen_in_one_run(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    const std::string text = pattern(kHugePageBytes);
    arena.write(2 * kHugePageBytes, as_bytes(text));
    arena.write(kHugePageBytes, as_bytes("end"));
    const Piece pieces[] = {{2 * kHugePageBytes, kHugePageBytes}, {kHugePageBytes, kHugePageBytes}};
    const ArenaSlice slice = ArenaMapping::scattered(arena.client_fd(), pieces);
    CHECK(slice.bytes() == 2 * kHugePageBytes && is_aligned(slice.span().data()));
    CHECK(holds(slice.span().first(kHugePageBytes), text));
    CHECK(holds(slice.span().subspan(kHugePageBytes, 3), "end"));
}

void populating_takes_no_memory_that_the_store_did_not(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    arena.write(kHugePageBytes, as_bytes("x"));
    struct stat before{};
    struct stat after{};
    ReadJob job;
    ::fstat(arena.client_fd(), &before);
    ArenaMapping mapping(arena.client_fd(), kArenaBytes);
    mapping.populate(job);
    ::fstat(arena.client_fd(), &after);
    CHECK(before.st_blocks == after.st_blocks && before.st_blocks * 512 < static_cast<off_t>(kArenaBytes));
    CHECK(mapping.slice(kHugePageBytes, 1).span()[0] == std::byte{'x'});
}

void slices_and_populating_share_a_mapping_between_threads(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    const std::string text = pattern(kArenaBytes);
    arena.write(0, as_bytes(text));
    ArenaMapping mapping(arena.client_fd(), kArenaBytes);
    ReadJob job;
    {
        const std::jthread populating([&] { mapping.populate(job); });
        const std::jthread slicing([&] { CHECK(holds(mapping.slice(0, kArenaBytes).span(), text)); });
    }
    CHECK(holds(mapping.slice(0, kArenaBytes).span(), text));
}

void bytes_outside_are_refused(PageKind kind) {
    const Arena arena(kArenaBytes, kind);
    ArenaMapping mapping(arena.client_fd(), kArenaBytes);
    ReadJob job;
    constexpr std::uint64_t kHuge = ~std::uint64_t{0} - 4095;
    CHECK_THROWS(std::invalid_argument, arena.write(kArenaBytes - 1, as_bytes("ab")));
    CHECK_THROWS(std::invalid_argument, arena.hash(kHuge, 8192));
    CHECK_THROWS(std::invalid_argument, arena.move(0, 4096, kArenaBytes, job));
    CHECK_THROWS(std::invalid_argument, arena.prefault(0, kArenaBytes + 4096, job));
    CHECK_THROWS(std::invalid_argument, arena.prefault(8192, 4096, job));
    CHECK_THROWS(std::invalid_argument, mapping.slice(4096, kArenaBytes));
    CHECK_THROWS(std::invalid_argument, ArenaMapping(arena.client_fd(), kArenaBytes + 1));
    CHECK_THROWS(std::invalid_argument, ArenaMapping(-1, kArenaBytes));
    for (const Piece piece : {Piece{kArenaBytes, 4096}, Piece{0, 100}, Piece{100, 4096}, Piece{kHuge, 4096}})
        CHECK_THROWS(std::invalid_argument, ArenaMapping::scattered(arena.client_fd(), {&piece, 1}));
}

void sizes_are_rounded_up_and_impossible_ones_refused() {
    CHECK(Arena(1, PageKind::kSmall).bytes() == kHugePageBytes);
    CHECK_THROWS(std::invalid_argument, Arena(0, PageKind::kSmall));
    CHECK_THROWS(std::invalid_argument, Arena(~std::uint64_t{0}, PageKind::kSmall));
    CHECK_THROWS(OutOfMemory, Arena(std::uint64_t{1} << 60, PageKind::kSmall));
}

void the_best_kind_has_large_pages_or_is_the_smallest() {
    const Arena arena(kArenaBytes, std::nullopt);
    CHECK((arena.kind() == PageKind::kSmall) == (arena.page_bytes() == kSmallPageBytes));
}

}  // namespace

int main() {
    kinds_have_names();
    sizes_are_rounded_up_and_impossible_ones_refused();
    the_best_kind_has_large_pages_or_is_the_smallest();
    for (const PageKind kind : kinds_of_this_machine()) {
        what_the_store_writes_its_clients_see(kind);
        clients_can_never_write(kind);
        a_forked_child_writes_to_the_same_memory(kind);
        a_move_keeps_every_byte_where_source_and_target_overlap(kind);
        pages_are_what_the_kernel_says(kind);
        prefaulting_leaves_what_is_written(kind);
        cancelled_work_stops(kind);
        a_slice_outlives_the_mapping_and_the_arena(kind);
        scattered_pieces_are_seen_in_one_run(kind);
        populating_takes_no_memory_that_the_store_did_not(kind);
        slices_and_populating_share_a_mapping_between_threads(kind);
        bytes_outside_are_refused(kind);
    }
}
