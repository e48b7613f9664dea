// A client's view of a store's arena: all of it mapped read-only once, images seen as slices of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "aligned_mapping.h"
#include "read_job.h"
#include "unique_fd.h"

namespace serverless_triton::loader {

// Read-only bytes that keep the mapping they lie in alive. Copyable; free to all threads.
class ArenaSlice {
  public:
    ArenaSlice(std::shared_ptr<const AlignedMapping> owner, Piece piece)
        : owner_(std::move(owner)), span_(owner_->span().subspan(piece.offset, piece.length)) {}

    [[nodiscard]] std::span<const std::byte> span() const { return span_; }
    [[nodiscard]] std::uint64_t bytes() const { return span_.size(); }

  private:
    std::shared_ptr<const AlignedMapping> owner_;
    std::span<const std::byte> span_;
};

// Any number of threads may call its members at once.
class ArenaMapping {
  public:
    // `fd` is only used during the call. Throws OutOfMemory, std::invalid_argument where the file is smaller than
    // `bytes`.
    ArenaMapping(int fd, std::uint64_t bytes);

    // A contiguous view of pieces of the arena, in that order, each of whole pages, mapped for it alone. Throws
    // std::invalid_argument where they are not or lie outside the file, OutOfMemory.
    [[nodiscard]] static ArenaSlice scattered(int fd, std::span<const Piece> pieces);

    [[nodiscard]] std::uint64_t bytes() const { return memory_->span().size(); }
    // How much 2 MiB pages map in this process now. Reads /proc.
    [[nodiscard]] std::uint64_t huge_bytes() const { return memory_->huge_bytes(); }

    // Fills this process's page tables for all memory that the store has by now, so that no access faults later. Takes
    // no memory that the store did not; for that it does nothing while a hugetlb arena lacks any of its pages, and
    // slice() fills what it needs then. Throws ReadCancelled.
    void populate(ReadJob& job);
    // The bytes at `offset`, their page tables filled where populate() did not yet. Throws std::invalid_argument.
    [[nodiscard]] ArenaSlice slice(std::uint64_t offset, std::uint64_t length);

  private:
    void fault_in(Piece piece);
    [[nodiscard]] Piece next_unpopulated(Piece piece) const;
    void mark_populated(Piece piece);

    UniqueFd fd_;
    std::shared_ptr<const AlignedMapping> memory_;
    mutable std::mutex mutex_;
    std::vector<bool> populated_;  // of each 2 MiB, under mutex_
};

}  // namespace serverless_triton::loader
