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
//   EMULATED_CUDA_READ_ONLY=0          mappings can't be made read-only (CUDA_ERROR_NOT_SUPPORTED) [1]
//   EMULATED_CUDA_FAIL=CALL:ERROR:N    the Nth call of that name fails with that number; N = 0: all of them do.
//                                      CALL "copy" is the copying itself. Several, separated by commas [none]
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

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

const std::map<Result, std::pair<const char*, const char*>> kErrors = {
    {kInvalidValue, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {kOutOfMemory, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {kNotInitialized, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {kNoDevice, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {kInvalidDevice, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {kInvalidContext, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {kInvalidHandle, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {kIllegalAddress, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {kAlreadyRegistered, {"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part of the memory is already mapped"}},
    {kNotRegistered, {"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to registered memory"}},
    {719, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {800, {"CUDA_ERROR_NOT_PERMITTED", "operation not permitted"}},
    {999, {"CUDA_ERROR_UNKNOWN", "unknown error"}},
    {kNotSupported, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
};

// The layouts of cuda.h, written a second time on purpose: the loader's own must agree with them.
struct Location {
    int type;
    int id;
};
struct Properties {
    int type;
    int requestedHandleTypes;
    Location location;
    void* win32HandleMetaData;
    unsigned char compressionType, gpuDirectRDMACapable;
    unsigned short usage;
    unsigned char reserved[4];
};
struct Access {
    Location location;
    int flags;
};

constexpr std::uint64_t kGranularity = 2 * 1024 * 1024;

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

struct Event {
    std::uint64_t recorded = 0;  // how often it was recorded
    std::uint64_t reached = 0;   // the last record that its stream has passed
};
using EventHandle = std::shared_ptr<Event>*;  // records under way hold the event, too

class Stream {
  public:
    Stream() : thread_([this] { run(); }) {}
    ~Stream() {
        {
            const std::lock_guard lock(mutex_);
            is_closing_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void push(std::function<void()> task) {
        {
            const std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        changed_.notify_all();
    }
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return tasks_.empty(); });
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return is_closing_ || !tasks_.empty(); });
            if (tasks_.empty())
                return;
            const std::function<void()> task = tasks_.front();
            lock.unlock();
            task();
            lock.lock();
            tasks_.pop_front();
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> tasks_;
    bool is_closing_ = false;
    std::thread thread_;
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
    bool has_read_only = true;
    std::vector<Failure> failures;
    std::map<std::uint64_t, std::shared_ptr<Allocation>> handles;
    std::uint64_t next_handle = 1;
    std::map<Address, Reservation> reservations;
    std::map<Address, std::uint64_t> pinned;
    Result sticky = kSuccess;
};

Machine& machine() {
    static Machine* const the_machine = new Machine;  // outlives the threads of streams that nobody destroyed
    return *the_machine;
}

thread_local std::vector<Context*> current_contexts;

// Made and dropped under the lock.
Allocation::Allocation(int file, std::uint64_t size, int home) : fd(file), bytes(size), device(home) {
    machine().used[static_cast<std::size_t>(device)] += bytes;
}

Allocation::~Allocation() {
    ::close(fd);
    machine().used[static_cast<std::size_t>(device)] -= bytes;
}

std::uint64_t number_in_environment(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

std::vector<Failure> failures_in_environment() {
    std::vector<Failure> failures;
    const char* text = std::getenv("EMULATED_CUDA_FAIL");
    std::istringstream list(text == nullptr ? "" : text);
    for (std::string item; std::getline(list, item, ',');) {
        std::istringstream fields(item);
        Failure failure{};
        char colon = 0;
        std::getline(fields, failure.call, ':');
        fields >> failure.result >> colon >> failure.at;
        failures.push_back(failure);
    }
    return failures;
}

// The machine's lock must be held.
std::optional<Result> injected(const char* call) {
    for (Failure& failure : machine().failures) {
        if (failure.call == call && (++failure.calls == failure.at || failure.at == 0))
            return failure.result;
    }
    return std::nullopt;
}

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
Reservation* reservation_of(Address begin, std::uint64_t bytes) {
    auto after = machine().reservations.upper_bound(begin);
    if (after == machine().reservations.begin())
        return nullptr;
    auto& [address, reservation] = *--after;
    return begin - address + bytes <= reservation.bytes ? &reservation : nullptr;
}

bool is_pinned(Address begin, std::uint64_t bytes) {
    auto after = machine().pinned.upper_bound(begin);
    if (after == machine().pinned.begin())
        return false;
    const auto& [address, length] = *--after;
    return begin - address + bytes <= length;
}

bool overlaps_pinned(Address begin, std::uint64_t bytes) {
    for (const auto& [address, length] : machine().pinned) {
        if (begin < address + length && address < begin + bytes)
            return true;
    }
    return false;
}

Result check_copy(Address target, const void* source, std::uint64_t bytes) {
    const Reservation* reservation = reservation_of(target, bytes);
    if (reservation == nullptr || !reservation->mapped || !reservation->writable)
        return kIllegalAddress;
    return is_pinned(reinterpret_cast<Address>(source), bytes) ? kSuccess : kIllegalAddress;
}

// On the stream's thread. What it copies from or to may have gone meanwhile, which only the lock keeps from happening
// during the copy itself.
void copy_late(Address target, const void* source, std::uint64_t bytes) {
    std::this_thread::sleep_for(machine().copy_delay);
    const std::lock_guard lock(machine().mutex);
    Result result = injected("copy").value_or(kSuccess);
    if (result == kSuccess)
        result = check_copy(target, source, bytes);
    if (result == kSuccess)
        std::memcpy(reinterpret_cast<void*>(target), source, bytes);
    else if (machine().sticky == kSuccess)
        machine().sticky = result;
}

Result sticky() {
    const std::lock_guard lock(machine().mutex);
    return machine().sticky;
}

bool is_aligned(std::uint64_t value) {
    return value % kGranularity == 0;
}

}  // namespace

EXPORTED Result cuInit(unsigned) {
    Machine& it = machine();
    const std::lock_guard lock(it.mutex);
    if (it.is_initialized)
        return kSuccess;
    it.failures = failures_in_environment();
    if (const auto failure = injected("cuInit"))
        return *failure;
    const auto devices = static_cast<int>(number_in_environment("EMULATED_CUDA_DEVICES", 1));
    if (devices == 0)
        return kNoDevice;
    for (int i = 0; i < devices; ++i)
        it.contexts.push_back({i});
    it.used.resize(it.contexts.size());
    it.memory_bytes = number_in_environment("EMULATED_CUDA_MEMORY_BYTES", 1ULL << 30);
    it.first_device = static_cast<int>(number_in_environment("EMULATED_CUDA_FIRST_DEVICE", 0));
    it.copy_delay = std::chrono::microseconds(number_in_environment("EMULATED_CUDA_COPY_DELAY_US", 0));
    it.has_read_only = number_in_environment("EMULATED_CUDA_READ_ONLY", 1) != 0;
    it.is_initialized = true;
    return kSuccess;
}

EXPORTED Result cuGetErrorName(Result error, const char** name) {
    const auto known = kErrors.find(error);
    if (known == kErrors.end())
        return kInvalidValue;
    *name = known->second.first;
    return kSuccess;
}

EXPORTED Result cuGetErrorString(Result error, const char** text) {
    const auto known = kErrors.find(error);
    if (known == kErrors.end())
        return kInvalidValue;
    *text = known->second.second;
    return kSuccess;
}

EXPORTED Result cuDeviceGetCount(int* count) {
    return call("cuDeviceGetCount", false, [&] {
        *count = static_cast<int>(machine().contexts.size());
        return kSuccess;
    });
}

EXPORTED Result cuDeviceGet(int* device, int ordinal) {
    return call("cuDeviceGet", false, [&] {
        *device = ordinal;
        return ordinal >= 0 && ordinal < static_cast<int>(machine().contexts.size()) ? kSuccess : kInvalidDevice;
    });
}

EXPORTED Result cuDeviceGetName(char* name, int length, int) {
    return call("cuDeviceGetName", false, [&] {
        std::strncpy(name, "Emulated GPU", static_cast<std::size_t>(length));
        return kSuccess;
    });
}

EXPORTED Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
    return call("cuDeviceGetUuid", false, [&] {
        std::memset(uuid, 0, 16);
        uuid[15] = static_cast<unsigned char>(device + machine().first_device);
        return kSuccess;
    });
}

EXPORTED Result cuDeviceGetAttribute(int* value, int attribute, int) {
    return call("cuDeviceGetAttribute", false, [&] {
        *value = attribute == 102 || attribute == 103;
        return kSuccess;
    });
}

EXPORTED Result cuDevicePrimaryCtxRetain(Context** context, int device) {
    return call("cuDevicePrimaryCtxRetain", false, [&] {
        *context = &machine().contexts.at(static_cast<std::size_t>(device));
        return kSuccess;
    });
}

EXPORTED Result cuDevicePrimaryCtxRelease_v2(int) {
    return call("cuDevicePrimaryCtxRelease", false, [] { return kSuccess; });
}

EXPORTED Result cuCtxPushCurrent_v2(Context* context) {
    current_contexts.push_back(context);
    return kSuccess;
}

EXPORTED Result cuCtxPopCurrent_v2(Context** context) {
    if (current_contexts.empty())
        return kInvalidContext;
    *context = current_contexts.back();
    current_contexts.pop_back();
    return kSuccess;
}

EXPORTED Result cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    return call("cuMemGetInfo", true, [&] {
        *total = machine().memory_bytes;
        *free = *total - machine().used[static_cast<std::size_t>(current_contexts.back()->device)];
        return kSuccess;
    });
}

EXPORTED Result cuMemGetAllocationGranularity(std::size_t* granularity, const Properties* properties, int) {
    return call("cuMemGetAllocationGranularity", false, [&] {
        *granularity = kGranularity;
        return properties->type == 1 && properties->location.type == 1 ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemCreate(std::uint64_t* handle, std::size_t bytes, const Properties* properties,
                            unsigned long long flags) {
    return call("cuMemCreate", true, [&] {
        const bool valid = properties->type == 1 && properties->requestedHandleTypes == 1 &&
                           properties->location.type == 1 && properties->win32HandleMetaData == nullptr && flags == 0;
        const auto device = static_cast<std::size_t>(properties->location.id);
        if (!valid || bytes == 0 || !is_aligned(bytes) || device >= machine().contexts.size())
            return kInvalidValue;
        if (bytes > machine().memory_bytes - machine().used[device])
            return kOutOfMemory;
        const int fd = ::memfd_create("emulated-gpu", MFD_CLOEXEC);
        if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0)
            return kOutOfMemory;
        *handle = machine().next_handle++;
        machine().handles[*handle] = std::make_shared<Allocation>(fd, bytes, properties->location.id);
        return kSuccess;
    });
}

EXPORTED Result cuMemRelease(std::uint64_t handle) {
    return call("cuMemRelease", false, [&] { return machine().handles.erase(handle) ? kSuccess : kInvalidValue; });
}

EXPORTED Result cuMemAddressReserve(Address* address, std::size_t bytes, std::size_t, Address, unsigned long long) {
    return call("cuMemAddressReserve", false, [&] {
        if (bytes == 0 || !is_aligned(bytes))
            return kInvalidValue;
        void* const memory = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            return kOutOfMemory;
        *address = reinterpret_cast<Address>(memory);
        machine().reservations[*address] = {bytes, nullptr};
        return kSuccess;
    });
}

EXPORTED Result cuMemAddressFree(Address address, std::size_t bytes) {
    return call("cuMemAddressFree", false, [&] {
        const auto found = machine().reservations.find(address);
        if (found == machine().reservations.end() || found->second.bytes != bytes || found->second.mapped)
            return kInvalidValue;
        ::munmap(reinterpret_cast<void*>(address), bytes);
        machine().reservations.erase(found);
        return kSuccess;
    });
}

EXPORTED Result cuMemMap(Address address, std::size_t bytes, std::size_t offset, std::uint64_t handle,
                         unsigned long long) {
    return call("cuMemMap", false, [&] {
        const auto known = machine().handles.find(handle);
        const auto place = machine().reservations.find(address);
        if (known == machine().handles.end() || place == machine().reservations.end() || place->second.mapped)
            return kInvalidValue;
        if (offset != 0 || bytes != known->second->bytes || bytes != place->second.bytes)
            return kInvalidValue;
        void* const wanted = reinterpret_cast<void*>(address);
        if (::mmap(wanted, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, known->second->fd, 0) == MAP_FAILED)
            return kOutOfMemory;
        place->second.mapped = known->second;
        return kSuccess;
    });
}

EXPORTED Result cuMemUnmap(Address address, std::size_t bytes) {
    return call("cuMemUnmap", false, [&] {
        const auto place = machine().reservations.find(address);
        if (place == machine().reservations.end() || !place->second.mapped || place->second.bytes != bytes)
            return kInvalidValue;
        constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        ::mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, kFlags, -1, 0);
        place->second = {bytes, nullptr};
        return kSuccess;
    });
}

EXPORTED Result cuMemSetAccess(Address address, std::size_t bytes, const Access* access, std::size_t count) {
    return call("cuMemSetAccess", false, [&] {
        const auto place = machine().reservations.find(address);
        if (place == machine().reservations.end() || !place->second.mapped || place->second.bytes != bytes)
            return kInvalidValue;
        if (count != 1 || access->location.type != 1 || (access->flags != 1 && access->flags != 3))
            return kInvalidValue;
        if (access->flags == 1 && !machine().has_read_only)
            return kNotSupported;
        place->second.readable = true;
        place->second.writable = access->flags == 3;
        const int protection = place->second.writable ? PROT_READ | PROT_WRITE : PROT_READ;
        return ::mprotect(reinterpret_cast<void*>(address), bytes, protection) == 0 ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemExportToShareableHandle(void* shareable, std::uint64_t handle, int type, unsigned long long) {
    return call("cuMemExportToShareableHandle", false, [&] {
        const auto known = machine().handles.find(handle);
        if (known == machine().handles.end() || type != 1)
            return kInvalidValue;
        const int fd = ::fcntl(known->second->fd, F_DUPFD_CLOEXEC, 0);
        *static_cast<int*>(shareable) = fd;
        return fd >= 0 ? kSuccess : kOutOfMemory;
    });
}

EXPORTED Result cuMemImportFromShareableHandle(std::uint64_t* handle, void* shareable, int type) {
    return call("cuMemImportFromShareableHandle", true, [&] {
        const int fd = ::fcntl(static_cast<int>(reinterpret_cast<std::uintptr_t>(shareable)), F_DUPFD_CLOEXEC, 0);
        struct stat status{};
        if (type != 1 || fd < 0 || ::fstat(fd, &status) != 0)
            return kInvalidValue;
        const auto bytes = static_cast<std::uint64_t>(status.st_size);
        *handle = machine().next_handle++;
        machine().handles[*handle] = std::make_shared<Allocation>(fd, bytes, current_contexts.back()->device);
        return kSuccess;
    });
}

EXPORTED Result cuPointerGetAttribute(void* value, int attribute, Address address) {
    return call("cuPointerGetAttribute", true, [&] {
        *static_cast<unsigned*>(value) = 1;  // CU_MEMORYTYPE_HOST
        return attribute == 2 && reservation_of(address, 1) != nullptr ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned) {
    return call("cuMemHostRegister", true, [&] {
        const auto address = reinterpret_cast<Address>(memory);
        if (bytes == 0 || address % 4096 != 0 || bytes % 4096 != 0)
            return kInvalidValue;
        if (overlaps_pinned(address, bytes))
            return kAlreadyRegistered;
        machine().pinned[address] = bytes;
        return kSuccess;
    });
}

EXPORTED Result cuMemHostUnregister(void* memory) {
    return call("cuMemHostUnregister", true,
                [&] { return machine().pinned.erase(reinterpret_cast<Address>(memory)) ? kSuccess : kNotRegistered; });
}

EXPORTED Result cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
    return call("cuMemHostAlloc", true, [&] {
        *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (*memory == nullptr)
            return kOutOfMemory;
        machine().pinned[reinterpret_cast<Address>(*memory)] = bytes;
        return kSuccess;
    });
}

EXPORTED Result cuMemFreeHost(void* memory) {
    return call("cuMemFreeHost", true, [&] {
        if (machine().pinned.erase(reinterpret_cast<Address>(memory)) == 0)
            return kInvalidValue;
        std::free(memory);
        return kSuccess;
    });
}

EXPORTED Result cuStreamCreate(Stream** stream, unsigned) {
    return call("cuStreamCreate", true, [&] {
        *stream = new Stream;
        return kSuccess;
    });
}

EXPORTED Result cuStreamDestroy_v2(Stream* stream) {
    // As on a real GPU, what is under way is neither waited for nor dropped.
    std::thread([stream] { delete stream; }).detach();
    return kSuccess;
}

EXPORTED Result cuStreamSynchronize(Stream* stream) {
    const Result result = call("cuStreamSynchronize", true, [] { return kSuccess; });
    stream->wait();
    return result == kSuccess ? sticky() : result;
}

EXPORTED Result cuEventCreate(EventHandle* event, unsigned) {
    return call("cuEventCreate", true, [&] {
        *event = new std::shared_ptr<Event>(std::make_shared<Event>());
        return kSuccess;
    });
}

EXPORTED Result cuEventDestroy_v2(EventHandle event) {
    delete event;
    return kSuccess;
}

EXPORTED Result cuEventRecord(EventHandle handle, Stream* stream) {
    return call("cuEventRecord", true, [&] {
        const std::shared_ptr<Event> event = *handle;
        const std::uint64_t record = ++event->recorded;
        stream->push([event, record] {
            const std::lock_guard lock(machine().mutex);
            event->reached = record;
            machine().changed.notify_all();
        });
        return kSuccess;
    });
}

EXPORTED Result cuEventSynchronize(EventHandle handle) {
    const Result result = call("cuEventSynchronize", true, [] { return kSuccess; });
    const std::shared_ptr<Event> event = *handle;
    std::unique_lock lock(machine().mutex);
    machine().changed.wait(lock, [&event] { return event->reached == event->recorded; });
    return result == kSuccess ? machine().sticky : result;
}

EXPORTED Result cuMemcpyHtoDAsync_v2(Address target, const void* source, std::size_t bytes, Stream* stream) {
    return call("cuMemcpyHtoDAsync", true, [&] {
        if (check_copy(target, source, bytes) != kSuccess)
            return kInvalidValue;
        stream->push([=] { copy_late(target, source, bytes); });
        return kSuccess;
    });
}

EXPORTED Result cuMemcpyDtoH_v2(void* target, Address source, std::size_t bytes) {
    return call("cuMemcpyDtoH", true, [&] {
        const Reservation* reservation = reservation_of(source, bytes);
        if (reservation == nullptr || !reservation->mapped || !reservation->readable)
            return kInvalidValue;
        std::memcpy(target, reinterpret_cast<const void*>(source), bytes);
        return kSuccess;
    });
}
