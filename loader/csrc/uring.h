// One io_uring by raw system calls, for reads only (https://kernel.dk/io_uring.pdf; io_uring_setup(2),
// io_uring_enter(2)). Move-only and not synchronised: a ring belongs to the thread that made it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace serverless_triton::loader {

class Uring {
  public:
    struct Completion {
        std::uint64_t tag;
        std::int64_t result;  // bytes read, 0 at the end of the file, or a negated errno
    };

    // Room for at least `entries` reads at once. None where the kernel has no io_uring that reads (before 5.6), where
    // seccomp or a sysctl forbids it, or where RLIMIT_MEMLOCK leaves no room for it.
    [[nodiscard]] static std::optional<Uring> create(unsigned entries);

    Uring(Uring&&) noexcept;
    Uring& operator=(Uring&&) noexcept;
    // Waits for every read in flight: until then the kernel may write to its memory.
    ~Uring();

    // Queues a read of destination.size() bytes, which may end short. The memory must stay until the completion with
    // that tag was returned, or the ring is gone. There must be room.
    void read(int fd, std::uint64_t offset, std::span<std::byte> destination, std::uint64_t tag);

    // Hands what is queued to the kernel. Throws std::system_error where the kernel breaks the contract.
    void submit();

    // Submits what is queued and blocks until a read is complete; there must be one in flight. Throws as submit().
    [[nodiscard]] Completion wait();

    // A read that is complete by now, without a system call.
    [[nodiscard]] std::optional<Completion> poll();

    [[nodiscard]] unsigned in_flight() const;  // queued or submitted, and not returned yet
    [[nodiscard]] unsigned room() const;       // further reads that can be queued

  private:
    class Rings;
    explicit Uring(std::unique_ptr<Rings> rings);

    std::unique_ptr<Rings> rings_;
};

}  // namespace serverless_triton::loader
