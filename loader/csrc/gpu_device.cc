#include "gpu_device.h"

#include <map>
#include <mutex>

#include "errors.h"

namespace serverless_triton::loader {
namespace {

struct MemoryInfo {
    std::size_t free = 0;
    std::size_t total = 0;
};

MemoryInfo memory_info_of(const GpuDevice& device) {
    const GpuDevice::Current current(device);
    MemoryInfo info;
    device.driver().memory_info(&info.free, &info.total);
    return info;
}

void check_ordinal(const cuda::Driver& driver, int ordinal) {
    const int count = driver.device_count();
    if (ordinal < 0 || ordinal >= count) {
        throw DeviceUnavailable("there is no device cuda:" + std::to_string(ordinal) + "; the driver sees " +
                                std::to_string(count) + ": check nvidia-smi and CUDA_VISIBLE_DEVICES");
    }
}

void check_attribute(const cuda::Driver& driver, cuda::Device device, int ordinal, int attribute, const char* what) {
    int holds = 0;
    driver.device_get_attribute(&holds, attribute, device);
    if (holds == 0) {
        throw DeviceUnavailable("cuda:" + std::to_string(ordinal) + " has no " + what +
                                ", which the store needs; use the CPU, or another GPU");
    }
}

// "GPU-" and five groups of hexadecimal digits.
std::string text_of(const cuda::Uuid& uuid) {
    constexpr const char* kDigits = "0123456789abcdef";
    std::string text = "GPU";
    for (std::size_t i = 0; i < sizeof(uuid.bytes); ++i) {
        if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10)
            text += '-';
        text += kDigits[uuid.bytes[i] >> 4];
        text += kDigits[uuid.bytes[i] & 15];
    }
    return text;
}

}  // namespace

std::vector<std::string> GpuDevice::uuids() {
    const cuda::Driver& driver = cuda::Driver::get();
    std::vector<std::string> names;
    for (int ordinal = 0; ordinal < driver.device_count(); ++ordinal) {
        cuda::Device device = 0;
        cuda::Uuid uuid;
        driver.device_get(&device, ordinal);
        driver.device_get_uuid(&uuid, device);
        names.push_back(text_of(uuid));
    }
    return names;
}

std::shared_ptr<const GpuDevice> GpuDevice::open(int ordinal) {
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<const GpuDevice>> devices;
    const std::lock_guard lock(mutex);
    std::shared_ptr<const GpuDevice> device = devices[ordinal].lock();
    if (!device) {
        device = std::make_shared<const GpuDevice>(ordinal);
        devices[ordinal] = device;
    }
    return device;
}

GpuDevice::GpuDevice(int ordinal) : driver_(cuda::Driver::get()), ordinal_(ordinal) {
    check_ordinal(driver_, ordinal);
    driver_.device_get(&device_, ordinal);
    check_attribute(driver_, device_, ordinal, cuda::kAttributeVirtualMemory, "virtual memory management");
    check_attribute(driver_, device_, ordinal, cuda::kAttributePosixHandles, "memory handles that are descriptors");
    driver_.context_retain(&context_, device_);
}

// At the end of the process the driver may be gone already: nothing can be done about a refusal.
GpuDevice::~GpuDevice() {
    static_cast<void>(driver_.context_release.attempt(device_));
}

std::string GpuDevice::name() const {
    char text[256] = {};
    driver_.device_get_name(text, static_cast<int>(sizeof(text)) - 1, device_);
    return text;
}

std::uint64_t GpuDevice::total_bytes() const {
    return memory_info_of(*this).total;
}

std::uint64_t GpuDevice::free_bytes() const {
    return memory_info_of(*this).free;
}

GpuDevice::Current::Current(const GpuDevice& device) : driver_(device.driver_), is_pushed_(true) {
    driver_.context_push(device.context_);
}

GpuDevice::Current::Current(const GpuDevice& device, std::nothrow_t) noexcept
    : driver_(device.driver_), is_pushed_(driver_.context_push.attempt(device.context_) == cuda::kSuccess) {}

GpuDevice::Current::~Current() {
    cuda::Context popped = nullptr;
    if (is_pushed_)
        static_cast<void>(driver_.context_pop.attempt(&popped));
}

}  // namespace serverless_triton::loader
