#include "cuda_driver.h"

#include <dlfcn.h>

#include <cstdlib>

#include "errors.h"

namespace serverless_triton::loader::cuda {
namespace {

constexpr const char* kLibraryVariable = "SERVERLESS_TRITON_CUDA_DRIVER";

void* open_library() {
    const char* named = std::getenv(kLibraryVariable);
    const std::string name = named != nullptr && *named != '\0' ? named : "libcuda.so.1";
    void* const library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw DeviceUnavailable("there is no CUDA driver here (" + std::string(::dlerror()) +
                                "); install NVIDIA's driver, or use the CPU");
    }
    return library;
}

// The driver must not be asked for words where it could not be opened or is still being opened.
std::string described_by(const Driver& driver, const char* call, Result result) {
    return std::string(call) + " failed: " + driver.describe(result);
}

[[noreturn]] void throw_as(Result result, const std::string& message) {
    if (result == kOutOfMemory)
        throw DeviceOutOfMemory(message + "; free memory of the GPU, or lower its budget");
    if (result == kNoDevice || result == kInvalidDevice)
        throw DeviceUnavailable(message + "; check nvidia-smi and CUDA_VISIBLE_DEVICES");
    throw DeviceError(message + "; see the kernel's log and nvidia-smi for the GPU's state");
}

}  // namespace

Driver::Driver() : library_(open_library()) {
    const Result result = init.attempt(0);
    if (result != kSuccess) {
        throw DeviceUnavailable(described_by(*this, "cuInit", result) +
                                "; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU");
    }
}

// The library stays open until the process ends: the driver has threads of its own.
const Driver& Driver::get() {
    static const Driver driver;
    return driver;
}

int Driver::device_count() const {
    int count = 0;
    device_get_count(&count);
    return count;
}

std::string Driver::describe(Result result) const {
    const char* name = nullptr;
    const char* text = nullptr;
    if (get_error_name.attempt(result, &name) != kSuccess || get_error_string.attempt(result, &text) != kSuccess)
        return "error " + std::to_string(result) + " of the CUDA driver";
    return std::string(name) + " (" + text + ")";
}

void* Driver::address_of(const char* name) const {
    void* const address = ::dlsym(library_, name);
    if (address == nullptr) {
        throw DeviceUnavailable("the CUDA driver has no " + std::string(name) +
                                "; install a driver for CUDA 11.4 or later");
    }
    return address;
}

void throw_device_error(const char* call, Result result) {
    throw_as(result, described_by(Driver::get(), call, result));
}

}  // namespace serverless_triton::loader::cuda
