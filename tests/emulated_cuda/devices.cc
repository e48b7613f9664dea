// The emulated driver's beginning: what the environment asks for, errors, devices and contexts.
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "machine.h"

namespace emulated_cuda {

Machine& machine() {
    static Machine* const the_machine = new Machine;  // outlives the threads of streams that nobody destroyed
    return *the_machine;
}

thread_local std::vector<Context*> current_contexts;

std::optional<Result> injected(const char* call) {
    for (Failure& failure : machine().failures) {
        if (failure.call == call && (++failure.calls == failure.at || failure.at == 0))
            return failure.result;
    }
    return std::nullopt;
}

namespace {

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
    if (const char* const log = std::getenv("EMULATED_CUDA_COPY_LOG"))
        it.copy_log.open(log, std::ios::app);
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

}  // namespace emulated_cuda
