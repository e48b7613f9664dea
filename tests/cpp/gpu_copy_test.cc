#include "gpu_copy.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "errors.h"
#include "gpu_cases.h"
#include "mapping.h"

namespace st = serverless_triton::loader;

namespace {

constexpr std::uint64_t kChunk = 64 * 1024;
constexpr std::uint64_t kStep = 3 * 4096 * 7;  // no multiple of a chunk, so that chunks span two steps
constexpr st::GpuCopyOptions kSmall{.streams = 3, .depth = 2, .staging_bytes = 20'000};

// Host memory with a pattern, and room on a device for it.
struct Image {
    explicit Image(std::uint64_t bytes, int device = 0)
        : content(pattern(bytes)),
          memory(st::Mapping::anonymous(bytes)),
          target(std::make_shared<st::DeviceMemory>(st::DeviceMemory::allocate(st::GpuDevice::open(device), bytes))) {
        std::memcpy(memory.span().data(), content.data(), bytes);
    }
    [[nodiscard]] std::span<const std::byte> bytes() const { return memory.span(); }
    [[nodiscard]] std::string copied() const {
        std::string text(content.size(), '\0');
        target->read(0, std::as_writable_bytes(std::span(text)));
        return text;
    }

    std::string content;
    st::Mapping memory;
    std::shared_ptr<st::DeviceMemory> target;
};

// Hands every chunk over from `threads` threads, as a reader would: the last first.
void hand_over(const Image& image, st::ChunkSink& sink, unsigned threads) {
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t offset = 0; offset < image.content.size(); offset += kChunk)
        offsets.push_back(offset);
    std::ranges::reverse(offsets);
    std::vector<std::jthread> workers;
    for (unsigned worker = 0; worker < threads; ++worker) {
        workers.emplace_back([&, worker] {
            for (std::size_t i = worker; i < offsets.size(); i += threads) {
                const std::uint64_t length = std::min<std::uint64_t>(kChunk, image.content.size() - offsets[i]);
                sink.chunk_ready(0, offsets[i], length, image.bytes().data() + offsets[i]);
            }
        });
    }
}

void chunks_of_registered_memory_arrive() {
    const Image image(1'500'000);
    const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
    st::GpuCopy copy(image.target, {0}, registered, kSmall);
    hand_over(image, copy, 4);
    copy.finish();
    CHECK(image.copied() == image.content);
    CHECK(copy.copied_bytes() == image.content.size());
    CHECK(registered->registered_bytes() == image.content.size());
}

void chunks_of_any_other_memory_arrive_by_way_of_buffers() {
    const Image image(1'500'000);
    st::GpuCopy copy(image.target, {0}, nullptr, kSmall);
    hand_over(image, copy, 4);
    copy.finish();
    CHECK(image.copied() == image.content);
}

void memory_that_cannot_be_registered_is_copied_all_the_same() {
    const Image image(500'000);
    const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
    st::GpuCopy copy(image.target, {0}, registered, kSmall);
    hand_over(image, copy, 2);
    copy.finish();
    CHECK(image.copied() == image.content);
    CHECK(registered->registered_bytes() == 0);
}

void only_what_is_copied_is_registered_and_only_once() {
    const Image image(4 * kStep);
    const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
    for (int round = 0; round < 2; ++round) {
        st::GpuCopy copy(image.target, {0}, registered, kSmall);
        copy.chunk_ready(0, 0, kStep + 1, image.bytes().data());
        copy.finish();
    }
    CHECK(registered->registered_bytes() == 2 * kStep);
}

void files_go_where_they_should() {
    const Image image(300'000);
    st::GpuCopy copy(image.target, {200'000, 0}, nullptr, kSmall);
    copy.chunk_ready(1, 0, 200'000, image.bytes().data());
    copy.chunk_ready(0, 0, 100'000, image.bytes().data() + 200'000);
    copy.finish();
    CHECK(image.copied() == image.content);
}

void an_image_in_scattered_pieces_arrives_as_one() {
    const Image image(20'000'000);
    std::vector<std::span<const std::byte>> pieces = {image.bytes().first(12'000'000),
                                                      image.bytes().subspan(12'000'000)};
    st::ReadJob job;
    st::GpuCopy copy(image.target, {0}, std::make_shared<st::RegisteredMemory>(image.bytes()));
    copy.copy(0, pieces, job);
    copy.finish();
    CHECK(image.copied() == image.content);
    CHECK(job.bytes_done() == image.content.size());
}

void chunks_outside_fail_the_copy_and_write_nothing() {
    const Image image(4096);
    st::GpuCopy copy(image.target, {image.target->bytes() - 4095}, nullptr, kSmall);
    copy.chunk_ready(0, 0, 4096, image.bytes().data());
    CHECK_THROWS(std::out_of_range, copy.finish());
    st::GpuCopy other(image.target, {0}, nullptr, kSmall);
    other.chunk_ready(1, 0, 1, image.bytes().data());
    CHECK_THROWS(std::out_of_range, other.finish());
}

// Were the first read's copies not waited for, they would come after the second's, or take bytes of both.
void a_restart_has_the_second_read_replace_the_first() {
    Image image(1'500'000);
    const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
    st::GpuCopy copy(image.target, {0}, registered, kSmall);
    hand_over(image, copy, 4);
    copy.restart();
    CHECK(copy.copied_bytes() == 0);
    CHECK(image.copied() == image.content);
    std::ranges::reverse(image.content);
    std::memcpy(image.memory.span().data(), image.content.data(), image.content.size());
    hand_over(image, copy, 4);
    copy.finish();
    CHECK(image.copied() == image.content);
    CHECK(copy.copied_bytes() == image.content.size());
}

void a_cancelled_copy_begins_nothing_more_and_says_so() {
    const Image image(500'000);
    st::GpuCopy copy(image.target, {0}, nullptr, kSmall);
    copy.chunk_ready(0, 0, kChunk, image.bytes().data());
    copy.cancel();
    hand_over(image, copy, 2);
    CHECK(copy.copied_bytes() == kChunk);
    CHECK_THROWS(st::ReadCancelled, copy.finish());
}

void a_cancelled_job_ends_the_copy_of_an_image() {
    const Image image(500'000);
    st::ReadJob job;
    job.cancel();
    st::GpuCopy copy(image.target, {0}, nullptr, kSmall);
    const std::vector<std::span<const std::byte>> pieces = {image.bytes()};
    copy.copy(0, pieces, job);
    CHECK(copy.copied_bytes() == 0);
    CHECK_THROWS(st::ReadCancelled, copy.finish());
}

// Were a copy still under way, the emulated driver would keep an error, and sanitizers would see the freed memory.
void a_copy_that_is_dropped_waits_for_what_is_under_way() {
    auto target = std::make_shared<st::DeviceMemory>(st::DeviceMemory::allocate(st::GpuDevice::open(0), 1'000'000));
    {
        const Image image(1'000'000);
        const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
        st::GpuCopy copy(target, {0}, registered, kSmall);
        hand_over(image, copy, 3);
    }
    const Image next(500'000);
    st::GpuCopy copy(next.target, {0}, nullptr, kSmall);
    hand_over(next, copy, 1);
    copy.finish();
    CHECK(next.copied() == next.content);
}

void a_failure_is_told_at_the_end_in_the_drivers_words() {
    const Image image(1'000'000);
    const auto registered = std::make_shared<st::RegisteredMemory>(image.bytes(), kStep);
    st::GpuCopy copy(image.target, {0}, registered, kSmall);
    hand_over(image, copy, 3);
    std::string message;
    try {
        copy.finish();
    } catch (const st::DeviceError& error) {
        message = error.what();
    }
    CHECK(message.find("CUDA_ERROR_LAUNCH_FAILED") != std::string::npos);
    CHECK(std::memcmp(image.bytes().data(), image.content.data(), image.content.size()) == 0);
}

void no_room_for_buffers_is_out_of_memory() {
    const Image image(100'000);
    st::GpuCopy copy(image.target, {0}, nullptr, kSmall);
    hand_over(image, copy, 1);
    CHECK_THROWS(st::DeviceOutOfMemory, copy.finish());
}

void copies_to_two_devices_run_side_by_side() {
    const Image one(1'000'000, 0);
    const Image two(1'000'000, 1);
    st::GpuCopy first(one.target, {0}, nullptr, kSmall);
    st::GpuCopy second(two.target, {0}, std::make_shared<st::RegisteredMemory>(two.bytes(), kStep), kSmall);
    {
        const std::jthread other([&] { hand_over(two, second, 2); });
        hand_over(one, first, 2);
    }
    first.finish();
    second.finish();
    CHECK(one.copied() == one.content);
    CHECK(two.copied() == two.content);
}

}  // namespace

int main() {
    const Environment nothing;
    const Environment late{{"EMULATED_CUDA_COPY_DELAY_US", "300"}};
    for (const Environment& environment : {nothing, late}) {
        run_case("registered", environment, chunks_of_registered_memory_arrive);
        run_case("staged", environment, chunks_of_any_other_memory_arrive_by_way_of_buffers);
        run_case("restarted", environment, a_restart_has_the_second_read_replace_the_first);
        run_case("cancelled", environment, a_cancelled_copy_begins_nothing_more_and_says_so);
        run_case("dropped", environment, a_copy_that_is_dropped_waits_for_what_is_under_way);
    }
    run_case("register refused", {{"EMULATED_CUDA_FAIL", "cuMemHostRegister:800:0"}},
             memory_that_cannot_be_registered_is_copied_all_the_same);
    run_case("registered once", nothing, only_what_is_copied_is_registered_and_only_once);
    run_case("offsets", nothing, files_go_where_they_should);
    run_case("pieces", nothing, an_image_in_scattered_pieces_arrives_as_one);
    run_case("outside", nothing, chunks_outside_fail_the_copy_and_write_nothing);
    run_case("cancelled job", nothing, a_cancelled_job_ends_the_copy_of_an_image);
    for (const char* failure : {"copy:719:3", "cuMemcpyHtoDAsync:719:3", "cuStreamSynchronize:719:1",
                                "cuEventRecord:719:2", "cuEventSynchronize:719:1"}) {
        run_case(failure, {{"EMULATED_CUDA_FAIL", failure}}, a_failure_is_told_at_the_end_in_the_drivers_words);
    }
    run_case("no pinned memory", {{"EMULATED_CUDA_FAIL", "cuMemHostAlloc:2:0"}}, no_room_for_buffers_is_out_of_memory);
    run_case("two devices", {{"EMULATED_CUDA_DEVICES", "2"}}, copies_to_two_devices_run_side_by_side);
}
