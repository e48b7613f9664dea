// The CUDA driver, opened at run time: no CUDA is needed to build this, and none to run what does not use a GPU.
//
// The library is libcuda.so.1, or the one that SERVERLESS_TRITON_CUDA_DRIVER names. What is declared here is the part
// of the public driver API (CUDA 11.4 and later) that is used; names and layouts are its own, without the prefixes.
//
// get() may be called from any thread; the calls from any thread on which the context that they need is current (see
// GpuDevice::Current). A process that has forked must not use in its child what it opened before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace serverless_triton::loader::cuda {

using Result = int;
using Device = int;
using DevicePtr = std::uint64_t;
using AllocationHandle = std::uint64_t;
using Context = struct ContextTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;

inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kNotSupported = 801;

inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributePosixHandles = 103;
inline constexpr int kPointerMemoryType = 2;
inline constexpr unsigned kMemoryTypeHost = 1;
inline constexpr int kAllocationPinned = 1;
inline constexpr int kHandlePosixFd = 1;
inline constexpr int kLocationDevice = 1;
inline constexpr int kGranularityMinimum = 0;
inline constexpr int kAccessRead = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostAllocPortable = 1;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventBlockingSync = 1;
inline constexpr unsigned kEventDisableTiming = 2;

struct Uuid {
    unsigned char bytes[16] = {};
};

struct MemoryLocation {
    int type = 0;
    int id = 0;
};

struct AllocationProperties {
    int type = 0;
    int requested_handle_types = 0;
    MemoryLocation location;
    void* win32_handle_meta_data = nullptr;
    unsigned char compression_type = 0;
    unsigned char gpu_direct_rdma_capable = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
};

struct AccessDescription {
    MemoryLocation location;
    int flags = 0;
};

static_assert(sizeof(AllocationProperties) == 32 && offsetof(AllocationProperties, location) == 8);
static_assert(offsetof(AllocationProperties, compression_type) == 24);
static_assert(sizeof(AccessDescription) == 12 && offsetof(AccessDescription, flags) == 8);

// One function of the library. Calling it throws where the driver reports a failure: DeviceUnavailable,
// DeviceOutOfMemory or DeviceError, with the names of the call and of the driver's error. attempt() returns the result.
template <typename... Arguments>
class Call {
  public:
    Call() = default;
    Call(const char* name, void* function) : name_(name), function_(reinterpret_cast<Function>(function)) {}
    void operator()(Arguments... arguments) const;
    [[nodiscard]] Result attempt(Arguments... arguments) const { return function_(arguments...); }

  private:
    using Function = Result (*)(Arguments...);
    const char* name_ = nullptr;
    Function function_ = nullptr;
};

class Driver {
  public:
    // Opens and initialises the driver at the first call. Throws DeviceUnavailable where that fails; each later call
    // then tries again.
    static const Driver& get();

    [[nodiscard]] int device_count() const;
    // "CUDA_ERROR_OUT_OF_MEMORY (out of memory)", in the driver's own words.
    [[nodiscard]] std::string describe(Result result) const;

  private:
    void* const library_;

    template <typename... Arguments>
    [[nodiscard]] Call<Arguments...> find(const char* name) const {
        return {name, address_of(name)};
    }
    [[nodiscard]] void* address_of(const char* name) const;
    Driver();

  public:
    // clang-format off
    const Call<Result, const char**> get_error_name = find<Result, const char**>("cuGetErrorName");
    const Call<Result, const char**> get_error_string = find<Result, const char**>("cuGetErrorString");
    const Call<unsigned> init = find<unsigned>("cuInit");
    const Call<int*> device_get_count = find<int*>("cuDeviceGetCount");
    const Call<Device*, int> device_get = find<Device*, int>("cuDeviceGet");
    const Call<char*, int, Device> device_get_name = find<char*, int, Device>("cuDeviceGetName");
    const Call<Uuid*, Device> device_get_uuid = find<Uuid*, Device>("cuDeviceGetUuid_v2");
    const Call<int*, int, Device> device_get_attribute = find<int*, int, Device>("cuDeviceGetAttribute");
    const Call<Context*, Device> context_retain = find<Context*, Device>("cuDevicePrimaryCtxRetain");
    const Call<Device> context_release = find<Device>("cuDevicePrimaryCtxRelease_v2");
    const Call<Context> context_push = find<Context>("cuCtxPushCurrent_v2");
    const Call<Context*> context_pop = find<Context*>("cuCtxPopCurrent_v2");
    const Call<std::size_t*, std::size_t*> memory_info = find<std::size_t*, std::size_t*>("cuMemGetInfo_v2");
    const Call<std::size_t*, const AllocationProperties*, int> memory_granularity =
        find<std::size_t*, const AllocationProperties*, int>("cuMemGetAllocationGranularity");
    const Call<AllocationHandle*, std::size_t, const AllocationProperties*, unsigned long long> memory_create =
        find<AllocationHandle*, std::size_t, const AllocationProperties*, unsigned long long>("cuMemCreate");
    const Call<AllocationHandle> memory_release = find<AllocationHandle>("cuMemRelease");
    const Call<DevicePtr*, std::size_t, std::size_t, DevicePtr, unsigned long long> address_reserve =
        find<DevicePtr*, std::size_t, std::size_t, DevicePtr, unsigned long long>("cuMemAddressReserve");
    const Call<DevicePtr, std::size_t> address_free = find<DevicePtr, std::size_t>("cuMemAddressFree");
    const Call<DevicePtr, std::size_t, std::size_t, AllocationHandle, unsigned long long> memory_map =
        find<DevicePtr, std::size_t, std::size_t, AllocationHandle, unsigned long long>("cuMemMap");
    const Call<DevicePtr, std::size_t> memory_unmap = find<DevicePtr, std::size_t>("cuMemUnmap");
    const Call<DevicePtr, std::size_t, const AccessDescription*, std::size_t> memory_set_access =
        find<DevicePtr, std::size_t, const AccessDescription*, std::size_t>("cuMemSetAccess");
    const Call<void*, AllocationHandle, int, unsigned long long> memory_export =
        find<void*, AllocationHandle, int, unsigned long long>("cuMemExportToShareableHandle");
    const Call<AllocationHandle*, void*, int> memory_import =
        find<AllocationHandle*, void*, int>("cuMemImportFromShareableHandle");
    const Call<void*, int, DevicePtr> pointer_get_attribute =
        find<void*, int, DevicePtr>("cuPointerGetAttribute");
    const Call<void*, std::size_t, unsigned> host_register = find<void*, std::size_t, unsigned>("cuMemHostRegister_v2");
    const Call<void*> host_unregister = find<void*>("cuMemHostUnregister");
    const Call<void**, std::size_t, unsigned> host_alloc = find<void**, std::size_t, unsigned>("cuMemHostAlloc");
    const Call<void*> host_free = find<void*>("cuMemFreeHost");
    const Call<Stream*, unsigned> stream_create = find<Stream*, unsigned>("cuStreamCreate");
    const Call<Stream> stream_destroy = find<Stream>("cuStreamDestroy_v2");
    const Call<Stream> stream_synchronize = find<Stream>("cuStreamSynchronize");
    const Call<Event*, unsigned> event_create = find<Event*, unsigned>("cuEventCreate");
    const Call<Event> event_destroy = find<Event>("cuEventDestroy_v2");
    const Call<Event, Stream> event_record = find<Event, Stream>("cuEventRecord");
    const Call<Event> event_synchronize = find<Event>("cuEventSynchronize");
    const Call<DevicePtr, const void*, std::size_t, Stream> copy_to_device =
        find<DevicePtr, const void*, std::size_t, Stream>("cuMemcpyHtoDAsync_v2");
    const Call<void*, DevicePtr, std::size_t> copy_to_host = find<void*, DevicePtr, std::size_t>("cuMemcpyDtoH_v2");
    // clang-format on
};

// Throws the typed error for a failed call.
[[noreturn]] void throw_device_error(const char* call, Result result);

template <typename... Arguments>
void Call<Arguments...>::operator()(Arguments... arguments) const {
    const Result result = function_(arguments...);
    if (result != kSuccess)
        throw_device_error(name_, result);
}

}  // namespace serverless_triton::loader::cuda
