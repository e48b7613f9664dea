#include "device_memory.h"

#include <cstring>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "errors.h"
#include "gpu_cases.h"
#include "gpu_copy.h"

namespace st = serverless_triton::loader;

namespace {

template <typename Error, typename Body>
std::string message_of(const Body& body) {
    try {
        body();
    } catch (const Error& error) {
        return error.what();
    }
    return "nothing was thrown";
}

bool mentions(const std::string& message, std::string_view text) {
    if (message.find(text) != std::string::npos)
        return true;
    std::fprintf(stderr, "message: %s\n", message.c_str());
    return false;
}

void fill(const std::shared_ptr<st::DeviceMemory>& memory, const std::string& content) {
    st::GpuCopy copy(memory, {0}, nullptr);
    copy.chunk_ready(0, 0, content.size(), reinterpret_cast<const std::byte*>(content.data()));
    copy.finish();
}

std::string text_of(const st::DeviceMemory& memory, std::size_t bytes) {
    std::string text(bytes, '\0');
    memory.read(0, std::as_writable_bytes(std::span(text)));
    return text;
}

void a_device_says_what_it_is() {
    const auto device = st::GpuDevice::open(0);
    CHECK(!device->name().empty());
    CHECK(device->total_bytes() >= device->free_bytes());
    CHECK(st::GpuDevice::open(0) == device);
}

void devices_are_named_whatever_their_numbers() {
    CHECK(st::GpuDevice::uuids() == std::vector<std::string>({"GPU-00000000-0000-0000-0000-000000000001",
                                                              "GPU-00000000-0000-0000-0000-000000000002"}));
}

void a_device_that_is_not_there_is_unavailable() {
    const int count = st::cuda::Driver::get().device_count();
    CHECK_THROWS(st::DeviceUnavailable, st::GpuDevice::open(count));
    CHECK_THROWS(st::DeviceUnavailable, st::GpuDevice::open(-1));
}

void memory_holds_what_was_copied_into_it() {
    const auto memory = std::make_shared<st::DeviceMemory>(st::DeviceMemory::allocate(st::GpuDevice::open(0), 10'000));
    const std::string content = pattern(10'000);
    fill(memory, content);
    CHECK(memory->bytes() >= 10'000);
    CHECK(text_of(*memory, content.size()) == content);
}

void a_descriptor_opens_the_same_memory() {
    const auto device = st::GpuDevice::open(0);
    auto memory = std::make_shared<st::DeviceMemory>(st::DeviceMemory::allocate(device, 5'000));
    const std::string content = pattern(5'000);
    fill(memory, content);
    const st::UniqueFd fd = memory->export_fd();
    const st::DeviceMemory imported = st::DeviceMemory::import(device, fd.get(), memory->bytes());
    memory.reset();
    CHECK(text_of(imported, content.size()) == content);
}

void freed_memory_can_be_had_again() {
    const auto device = st::GpuDevice::open(0);
    const std::uint64_t before = device->free_bytes();
    {
        const st::DeviceMemory memory = st::DeviceMemory::allocate(device, before / 2);
    }
    CHECK(device->free_bytes() == before);
}

void a_full_device_says_so_in_the_drivers_words() {
    const auto device = st::GpuDevice::open(0);
    const std::string message =
        message_of<st::DeviceOutOfMemory>([&] { st::DeviceMemory::allocate(device, 2 * device->total_bytes()); });
    CHECK(mentions(message, "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY"));
}

void reads_past_the_end_are_refused() {
    const st::DeviceMemory memory = st::DeviceMemory::allocate(st::GpuDevice::open(0), 4096);
    std::vector<std::byte> target(2);
    CHECK_THROWS(std::out_of_range, memory.read(memory.bytes() - 1, target));
    CHECK_THROWS(std::invalid_argument, st::DeviceMemory::allocate(st::GpuDevice::open(0), 0));
}

void a_refused_mapping_gives_everything_back() {
    const auto device = st::GpuDevice::open(0);
    const std::uint64_t before = device->free_bytes();
    CHECK_THROWS(st::DeviceError, st::DeviceMemory::allocate(device, 4096));
    CHECK(device->free_bytes() == before);
}

void no_device_is_unavailable() {
    const std::string message = message_of<st::DeviceUnavailable>([] { st::GpuDevice::open(0); });
    CHECK(mentions(message, "CUDA_ERROR_NO_DEVICE"));
}

void no_driver_is_unavailable() {
    const std::string message = message_of<st::DeviceUnavailable>([] { st::GpuDevice::open(0); });
    CHECK(mentions(message, "there is no CUDA driver here"));
}

}  // namespace

int main() {
    const Environment nothing;
    run_case("a device says what it is", nothing, a_device_says_what_it_is);
    run_case("names", {{"EMULATED_CUDA_DEVICES", "2"}, {"EMULATED_CUDA_FIRST_DEVICE", "1"}},
             devices_are_named_whatever_their_numbers);
    run_case("a device that is not there", nothing, a_device_that_is_not_there_is_unavailable);
    run_case("copied in", nothing, memory_holds_what_was_copied_into_it);
    run_case("descriptor", nothing, a_descriptor_opens_the_same_memory);
    run_case("descriptor, no read-only", {{"EMULATED_CUDA_READ_ONLY", "0"}}, a_descriptor_opens_the_same_memory);
    run_case("freed", nothing, freed_memory_can_be_had_again);
    run_case("full", nothing, a_full_device_says_so_in_the_drivers_words);
    run_case("past the end", nothing, reads_past_the_end_are_refused);
    run_case("map refused", {{"EMULATED_CUDA_FAIL", "cuMemMap:1:1"}}, a_refused_mapping_gives_everything_back);
    run_case("access refused", {{"EMULATED_CUDA_FAIL", "cuMemSetAccess:999:0"}},
             a_refused_mapping_gives_everything_back);
    run_case("no device", {{"EMULATED_CUDA_DEVICES", "0"}}, no_device_is_unavailable);
    run_case("no driver", {{"SERVERLESS_TRITON_CUDA_DRIVER", "/nowhere/libcuda.so"}}, no_driver_is_unavailable);
}
