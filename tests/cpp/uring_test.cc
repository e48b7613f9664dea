#include "uring.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "unique_fd.h"

using namespace serverless_triton::loader;

namespace {

struct Pipe {
    Pipe() {
        int ends[2];
        check_that(::pipe2(ends, O_CLOEXEC) == 0, "pipe2", __FILE__, __LINE__);
        out = UniqueFd(ends[0]);
        in = UniqueFd(ends[1]);
    }
    UniqueFd out;
    UniqueFd in;
};

void every_read_is_returned_once_with_its_tag() {
    const std::string content = pattern(10'000);
    const TemporaryFile file(content);
    const UniqueFd fd(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
    auto ring = *Uring::create(4);
    std::vector<std::byte> memory(content.size());
    std::set<std::uint64_t> tags;
    for (std::uint64_t round = 0; round < 5; ++round) {
        const std::uint64_t begin = round * 2'000;
        for (std::uint64_t i = 0; i < 4; ++i)
            ring.read(fd.get(), begin + i * 500, std::span(memory).subspan(begin + i * 500, 500), round * 4 + i);
        while (ring.in_flight() > 0) {
            const auto completion = ring.wait();
            CHECK(completion.result == 500 && tags.insert(completion.tag).second);
        }
    }
    CHECK(tags.size() == 20 && std::memcmp(memory.data(), content.data(), content.size()) == 0);
}

void the_end_of_a_file_and_errors_are_told_apart() {
    const TemporaryFile file(pattern(100));
    const UniqueFd fd(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
    auto ring = *Uring::create(2);
    std::vector<std::byte> memory(4096);
    ring.read(fd.get(), 60, memory, 1);
    CHECK(ring.wait().result == 40);
    ring.read(fd.get(), 100, memory, 2);
    CHECK(ring.wait().result == 0);
    ring.read(-1, 0, memory, 3);
    CHECK(ring.wait().result == -EBADF);
}

void a_ring_goes_only_when_the_kernel_is_done_with_its_memory() {
    const Pipe pipe;
    auto ring = Uring::create(2);
    char memory[2] = {};
    ring->read(pipe.out.get(), 0, std::as_writable_bytes(std::span(memory, 1)), 1);
    ring->submit();
    ring->read(pipe.out.get(), 0, std::as_writable_bytes(std::span(memory + 1, 1)), 2);  // never submitted
    std::thread destroyer([&] { ring.reset(); });
    CHECK(::write(pipe.in.get(), "ab", 2) == 2);
    destroyer.join();
    CHECK(memory[0] == 'a' && memory[1] == 0);
}

void ignore_signal(int) {}

void signals_interrupt_no_wait() {
    struct sigaction action{};
    action.sa_handler = ignore_signal;
    ::sigaction(SIGUSR1, &action, nullptr);
    const Pipe pipe;
    std::atomic<bool> began{false};
    std::int64_t result = 0;
    char byte = 0;
    std::thread waiter([&] {
        auto ring = *Uring::create(1);
        ring.read(pipe.out.get(), 0, std::as_writable_bytes(std::span(&byte, 1)), 1);
        began = true;
        result = ring.wait().result;
    });
    while (!began)
        std::this_thread::yield();
    for (int i = 0; i < 100; ++i) {
        ::pthread_kill(waiter.native_handle(), SIGUSR1);
        std::this_thread::yield();
    }
    CHECK(::write(pipe.in.get(), "x", 1) == 1);
    waiter.join();
    CHECK(result == 1 && byte == 'x');
}

}  // namespace

int main() {
    if (!Uring::create(1)) {
        std::puts("io_uring is not available here: nothing was tested");
        return 0;
    }
    every_read_is_returned_once_with_its_tag();
    the_end_of_a_file_and_errors_are_told_apart();
    a_ring_goes_only_when_the_kernel_is_done_with_its_memory();
    signals_interrupt_no_wait();
}
