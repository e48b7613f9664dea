// The memory that a store keeps all its images in: one file, created once, mapped writable here and read-only at its
// clients, never freed while the store lives.
//
// A child made by fork() has the same memory, writable too; nobody else can ever write to it, whatever descriptor they
// hold. Move-only. Different threads may call its const members at once on bytes that do not overlap; what one writes
// to bytes that another reads is theirs to order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "aligned_mapping.h"
#include "read_job.h"
#include "unique_fd.h"
#include "xxh3.h"

namespace serverless_triton::loader {

enum class PageKind {
    kHugetlb,  // 2 MiB pages that the machine keeps for this
    kTmpfs,    // a private tmpfs that takes 2 MiB pages where it finds them
    kMemfd,    // a memory file with the advice to take 2 MiB pages, which the machine's settings may ignore
    kSmall,    // 4 KiB pages
};

// "hugetlb", "tmpfs", "memfd" or "4k".
[[nodiscard]] std::string_view name_of(PageKind kind);
// Nothing for any other word.
[[nodiscard]] std::optional<PageKind> page_kind_from(std::string_view name);

class Arena {
  public:
    // `bytes` is rounded up to whole 2 MiB. Without `kind` takes the first of the list above that gives 2 MiB pages, or
    // small ones; with it exactly that kind, and page_bytes() tells what came of it. `node_root` is where the kernel
    // tells of memory nodes; over several of them the pages are interleaved.
    // Throws PagesUnavailable where that kind is not to be had, OutOfMemory, std::invalid_argument for 0 bytes.
    Arena(std::uint64_t bytes, std::optional<PageKind> kind,
          const std::filesystem::path& node_root = "/sys/devices/system/node");

    [[nodiscard]] PageKind kind() const { return kind_; }
    // What the first page turned out to be, once it was touched: 2 MiB or 4 KiB. Later ones may be smaller where the
    // machine's memory is too fragmented: see huge_bytes().
    [[nodiscard]] std::uint64_t page_bytes() const { return page_bytes_; }
    [[nodiscard]] std::uint64_t bytes() const { return memory_.span().size(); }
    // How much 2 MiB pages map in this process now; of memory that it did not touch yet, nothing. Reads /proc.
    [[nodiscard]] std::uint64_t huge_bytes() const { return memory_.huge_bytes(); }
    // The nodes that the pages are spread over; empty where they come from whichever is nearest.
    [[nodiscard]] const std::vector<unsigned>& interleaved_nodes() const { return nodes_; }
    // What clients get: good for reading and mapping read-only, for nothing else. Stays the arena's.
    [[nodiscard]] int client_fd() const { return client_fd_.get(); }
    [[nodiscard]] std::span<std::byte> span() const { return memory_.span(); }

    // Those below throw std::invalid_argument for bytes that are not the arena's.

    // Has the kernel give memory for [begin, end) now, a few megabytes at a time; leaves what is written there. Throws
    // OutOfMemory, ReadCancelled.
    void prefault(std::uint64_t begin, std::uint64_t end, ReadJob& job) const;
    // Copies bytes that may overlap. After ReadCancelled the target is part old and part new, and so is a source that
    // overlaps it.
    void move(std::uint64_t source, std::uint64_t target, std::uint64_t length, ReadJob& job) const;
    void write(std::uint64_t offset, std::span<const std::byte> bytes) const;
    [[nodiscard]] Digest hash(std::uint64_t offset, std::uint64_t length) const;

  private:
    Arena(std::uint64_t bytes, PageKind kind, const std::vector<unsigned>& nodes);
    [[nodiscard]] static Arena best(std::uint64_t bytes, const std::vector<unsigned>& nodes);
    [[nodiscard]] std::span<std::byte> part(Piece piece) const;

    PageKind kind_;
    AlignedMapping memory_;
    UniqueFd client_fd_;
    std::vector<unsigned> nodes_;
    std::uint64_t page_bytes_ = kSmallPageBytes;
};

}  // namespace serverless_triton::loader
