#include "uring.h"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <system_error>
#include <utility>

#include "unique_fd.h"

namespace serverless_triton::loader {
namespace {

// The same on every architecture but Alpha; older C libraries don't name them.
constexpr long kSetup = 425;
constexpr long kEnter = 426;

// Memory that the kernel shares with us: unmapped at the end.
class Region {
  public:
    Region(int fd, std::size_t bytes, std::uint64_t offset)
        : bytes_(bytes),
          address_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                          static_cast<off_t>(offset))) {}
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region() {
        if (*this)
            ::munmap(address_, bytes_);
    }

    explicit operator bool() const { return address_ != MAP_FAILED; }
    template <typename Item>
    [[nodiscard]] Item* at(std::size_t offset) const {
        return reinterpret_cast<Item*>(static_cast<std::byte*>(address_) + offset);
    }

  private:
    std::size_t bytes_;
    void* address_;
};

std::size_t ring_bytes(const io_uring_params& parameters) {
    return std::max(parameters.sq_off.array + parameters.sq_entries * sizeof(std::uint32_t),
                    parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe));
}

}  // namespace

// Both queues, each a ring of which the kernel moves one end and we the other. Only our own ends may be read relaxed.
class Uring::Rings {
  public:
    Rings(UniqueFd fd, const io_uring_params& parameters)
        : fd_(std::move(fd)),
          queues_(fd_.get(), ring_bytes(parameters), IORING_OFF_SQ_RING),
          requests_(fd_.get(), parameters.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES),
          parameters_(parameters) {}
    Rings(const Rings&) = delete;
    Rings& operator=(const Rings&) = delete;
    ~Rings() {
        // The kernel never looks at what nobody tells it of.
        in_flight_ -= std::exchange(queued_, 0);
        while (in_flight_ > 0) {
            if (!pop() && !try_enter(1))
                ::sched_yield();
        }
    }

    explicit operator bool() const { return queues_ && requests_; }

    void push(int fd, std::uint64_t offset, std::span<std::byte> destination, std::uint64_t tag) {
        assert(room() > 0);
        const std::uint32_t tail = std::atomic_ref(submission_tail()).load(std::memory_order_relaxed);
        const std::uint32_t place = tail & (parameters_.sq_entries - 1);
        io_uring_sqe& request = requests_.at<io_uring_sqe>(0)[place];
        request = {};
        request.opcode = IORING_OP_READ;
        request.fd = fd;
        request.off = offset;
        request.addr = reinterpret_cast<std::uint64_t>(destination.data());
        request.len = static_cast<std::uint32_t>(destination.size());
        request.user_data = tag;
        queues_.at<std::uint32_t>(parameters_.sq_off.array)[place] = place;
        std::atomic_ref(submission_tail()).store(tail + 1, std::memory_order_release);
        ++queued_;
        ++in_flight_;
    }

    std::optional<Completion> pop() {
        const std::uint32_t head = std::atomic_ref(completion_head()).load(std::memory_order_relaxed);
        if (head == std::atomic_ref(completion_tail()).load(std::memory_order_acquire))
            return std::nullopt;
        const auto& entry = queues_.at<io_uring_cqe>(parameters_.cq_off.cqes)[head & (parameters_.cq_entries - 1)];
        const Completion completion{entry.user_data, entry.res};
        std::atomic_ref(completion_head()).store(head + 1, std::memory_order_release);
        --in_flight_;
        return completion;
    }

    // Submits what is queued and waits for `wanted` completions. A signal, or a kernel short of memory, may end that
    // early: then the caller looks for completions and asks again.
    void enter(unsigned wanted) {
        if (!try_enter(wanted) && errno != EINTR && errno != EAGAIN && errno != EBUSY)
            throw std::system_error(errno, std::generic_category(), "io_uring_enter");
    }

    [[nodiscard]] unsigned queued() const { return queued_; }
    [[nodiscard]] unsigned in_flight() const { return in_flight_; }
    [[nodiscard]] unsigned room() const { return parameters_.sq_entries - in_flight_; }

  private:
    bool try_enter(unsigned wanted) {
        const unsigned flags = wanted > 0 ? IORING_ENTER_GETEVENTS : 0;
        const long submitted = ::syscall(kEnter, fd_.get(), queued_, wanted, flags, nullptr, 0);
        if (submitted < 0)
            return false;
        queued_ -= static_cast<unsigned>(submitted);
        return true;
    }

    std::uint32_t& submission_tail() const { return *queues_.at<std::uint32_t>(parameters_.sq_off.tail); }
    std::uint32_t& completion_head() const { return *queues_.at<std::uint32_t>(parameters_.cq_off.head); }
    std::uint32_t& completion_tail() const { return *queues_.at<std::uint32_t>(parameters_.cq_off.tail); }

    UniqueFd fd_;
    Region queues_;
    Region requests_;
    io_uring_params parameters_;
    unsigned queued_ = 0;     // not handed to the kernel yet
    unsigned in_flight_ = 0;  // these and those that are not returned yet
};

std::optional<Uring> Uring::create(unsigned entries) {
    io_uring_params parameters{};
    UniqueFd fd(static_cast<int>(::syscall(kSetup, entries, &parameters)));
    // Without this feature (before 5.4) there is no IORING_OP_READ either.
    if (!fd || (parameters.features & IORING_FEAT_SINGLE_MMAP) == 0)
        return std::nullopt;
    auto rings = std::make_unique<Rings>(std::move(fd), parameters);
    if (!*rings)
        return std::nullopt;
    return Uring(std::move(rings));
}

void Uring::read(int fd, std::uint64_t offset, std::span<std::byte> destination, std::uint64_t tag) {
    rings_->push(fd, offset, destination, tag);
}

void Uring::submit() {
    if (rings_->queued() > 0)
        rings_->enter(0);
}

Uring::Completion Uring::wait() {
    assert(rings_->in_flight() > 0);
    for (;;) {
        if (const auto completion = rings_->pop())
            return *completion;
        rings_->enter(1);
    }
}

std::optional<Uring::Completion> Uring::poll() {
    return rings_->pop();
}

unsigned Uring::in_flight() const {
    return rings_->in_flight();
}

unsigned Uring::room() const {
    return rings_->room();
}

Uring::Uring(std::unique_ptr<Rings> rings) : rings_(std::move(rings)) {}
Uring::Uring(Uring&&) noexcept = default;
Uring& Uring::operator=(Uring&&) noexcept = default;
Uring::~Uring() = default;

}  // namespace serverless_triton::loader

#else  // headers of a system without io_uring: there is never a ring

namespace serverless_triton::loader {

class Uring::Rings {};

std::optional<Uring> Uring::create(unsigned) {
    return std::nullopt;
}
void Uring::read(int, std::uint64_t, std::span<std::byte>, std::uint64_t) {}
void Uring::submit() {}
Uring::Completion Uring::wait() {
    return {};
}
std::optional<Uring::Completion> Uring::poll() {
    return std::nullopt;
}
unsigned Uring::in_flight() const {
    return 0;
}
unsigned Uring::room() const {
    return 0;
}
Uring::Uring(Uring&&) noexcept = default;
Uring& Uring::operator=(Uring&&) noexcept = default;
Uring::~Uring() = default;

}  // namespace serverless_triton::loader
#endif
