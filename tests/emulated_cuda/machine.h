// A CUDA driver for tests, on machines that have none: the part of the driver API that the loader uses, in host memory.
//
// Device memory is a memory file, an exported handle a descriptor of it, a mapping an mmap at a reserved address.
// Copies are done by one thread a stream, in order and late, so that whoever forgets to wait is found out. It is
// stricter than a driver has to be: it refuses copies from memory that is not pinned as a whole, and a copy whose
// source or target is gone when its turn comes leaves an error that sticks, as on a real GPU.
//
// The environment decides, read at cuInit():
//   EMULATED_CUDA_DEVICES=2            how many devices there are [1]
//   EMULATED_CUDA_FIRST_DEVICE=N       which of the machine's devices this process calls 0 [0]
//   EMULATED_CUDA_MEMORY_BYTES=N       of each, counted over this process [1 GiB]
//   EMULATED_CUDA_COPY_DELAY_US=N      how late each asynchronous copy is done [0]
//   EMULATED_CUDA_COPY_LOG=FILE        where each asynchronous copy that is done adds a line with its bytes [none]
//   EMULATED_CUDA_READ_ONLY=0          mappings can't be made read-only (CUDA_ERROR_NOT_SUPPORTED) [1]
//   EMULATED_CUDA_FAIL=CALL:ERROR:N    the Nth call of that name fails with that number; N = 0: all of them do.
//                                      CALL "copy" is the copying itself. Several, separated by commas [none]
//
// This header has the machine that the driver runs on, shared by its parts: devices.cc, memory.cc and streams.cc. All
// of it is guarded by the machine's lock, which call() takes for each function of the driver.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace emulated_cuda {

using Result = int;
using Address = std::uint64_t;

constexpr Result kSuccess = 0;
constexpr Result kInvalidValue = 1;
constexpr Result kOutOfMemory = 2;
constexpr Result kNotInitialized = 3;
constexpr Result kNoDevice = 100;
constexpr Result kInvalidDevice = 101;
constexpr Result kInvalidContext = 201;
constexpr Result kInvalidHandle = 400;
constexpr Result kIllegalAddress = 700;
constexpr Result kAlreadyRegistered = 712;
constexpr Result kNotRegistered = 713;
constexpr Result kNotSupported = 801;

struct Context {
    int device;
};

// Memory of one device, for as long as a handle or a mapping in this process refers to it.
struct Allocation {
    Allocation(int file, std::uint64_t size, int home);
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;
    ~Allocation();
    const int fd;
    const std::uint64_t bytes;
    const int device;
};

struct Reservation {
    std::uint64_t bytes;
    std::shared_ptr<Allocation> mapped;
    bool readable = false;
    bool writable = false;
};

struct Failure {
    std::string call;
    Result result;
    std::uint64_t at;
    std::uint64_t calls = 0;
};

struct Machine {
    std::mutex mutex;
    std::condition_variable changed;
    bool is_initialized = false;
    std::vector<Context> contexts;
    std::vector<std::uint64_t> used;
    std::uint64_t memory_bytes = 0;
    int first_device = 0;
    std::chrono::microseconds copy_delay{0};
    std::ofstream copy_log;
    bool has_read_only = true;
    std::vector<Failure> failures;
    std::map<std::uint64_t, std::shared_ptr<Allocation>> handles;
    std::uint64_t next_handle = 1;
    std::map<Address, Reservation> reservations;
    std::map<Address, std::uint64_t> pinned;
    Result sticky = kSuccess;
};

Machine& machine();

extern thread_local std::vector<Context*> current_contexts;

// The error that the environment asks for here, if it does. The lock must be held.
std::optional<Result> injected(const char* call);

// Runs `body` as the driver's function of that name: under the lock, initialised, with a context where it needs one.
template <typename Body>
Result call(const char* name, bool needs_context, const Body& body) {
    const std::lock_guard lock(machine().mutex);
    if (const auto failure = injected(name))
        return *failure;
    if (!machine().is_initialized)
        return kNotInitialized;
    if (needs_context && current_contexts.empty())
        return kInvalidContext;
    if (needs_context && machine().sticky != kSuccess)
        return machine().sticky;
    return body();
}

// The reservation that holds all of a range, or null. The lock must be held.
Reservation* reservation_of(Address begin, std::uint64_t bytes);

// Whether all of a range of host memory is registered or was allocated pinned. The lock must be held.
bool is_pinned(Address begin, std::uint64_t bytes);

}  // namespace emulated_cuda
