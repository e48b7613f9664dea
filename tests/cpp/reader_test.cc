#include "reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "errors.h"
#include "memory_file.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kTestChunkBytes = 16 * 4096;
constexpr std::uint64_t kRoomBytes = 64 * kTestChunkBytes;

void drop_from_page_cache(const TemporaryFile& file) {
    const UniqueFd fd(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
    ::fsync(fd.get());
    ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
}

void files_arrive_whole(std::size_t bytes, bool cached) {
    const std::string content = pattern(bytes);
    const TemporaryFile file(content);
    if (!cached)
        drop_from_page_cache(file);
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    const Transfer transfer{&image, {memory.span()}};
    const ReadReport report = Reader(3, kTestChunkBytes, 0).read({&transfer, 1}, job);
    CHECK(std::memcmp(memory.data(), content.data(), bytes) == 0);
    CHECK(job.bytes_done() == bytes && report.disk_bytes + report.page_cache_bytes == bytes);
    CHECK(report.direct_bytes <= report.disk_bytes);
    if (cached)
        CHECK(report.page_cache_bytes == bytes);
}

void several_files_share_the_threads() {
    const std::string one = pattern(5 * kTestChunkBytes + 17);
    const std::string two = pattern(123);
    const TemporaryFile first(one);
    const TemporaryFile second(two);
    const FileImage images[] = {FileImage::open(first.path()), FileImage::open(second.path())};
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfers[] = {{&images[0], {memory.span()}}, {&images[1], {memory.span().subspan(kRoomBytes / 2)}}};
    ReadJob job;
    static_cast<void>(Reader(4, kTestChunkBytes, 0).read(transfers, job));
    CHECK(std::memcmp(memory.data(), one.data(), one.size()) == 0);
    CHECK(std::memcmp(memory.data() + kRoomBytes / 2, two.data(), two.size()) == 0);
}

void a_file_may_lie_in_pieces() {
    const std::string content = pattern(5 * kTestChunkBytes + 17);
    const TemporaryFile file(content);
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const auto room = memory.span();
    const Transfer transfer{
        &image,
        {room.subspan(9 * kTestChunkBytes, 2 * kTestChunkBytes), {}, room.first(3 * kTestChunkBytes), room.last(4096)}};
    ReadJob job;
    static_cast<void>(Reader(3, kTestChunkBytes, 0).read({&transfer, 1}, job));
    const char* expected = content.data();
    for (const auto& piece : transfer.pieces) {
        const std::size_t held = std::min<std::size_t>(piece.size(), content.data() + content.size() - expected);
        CHECK(piece.empty() || std::memcmp(piece.data(), expected, held) == 0);
        expected += held;
    }
    CHECK(expected == content.data() + content.size());
}

// Takes what it hears of, copies it out at once, and lets the test act at a chunk of its choice.
class Recorder : public ChunkSink {
  public:
    explicit Recorder(std::function<void(std::size_t)> at_call = {}) : at_call_(std::move(at_call)) {}

    void chunk_ready(std::size_t file_index, std::uint64_t offset, std::uint64_t length,
                     const std::byte* bytes) override {
        std::unique_lock lock(mutex_);
        chunks_[{file_index, offset}] = std::string(reinterpret_cast<const char*>(bytes), length);
        const std::size_t calls = ++calls_;
        lock.unlock();
        if (at_call_)
            at_call_(calls);
    }

    [[nodiscard]] std::size_t calls() const { return calls_; }
    [[nodiscard]] std::string content_of(std::size_t file_index) const {
        std::string content;
        for (const auto& [place, bytes] : chunks_) {
            if (place.first == file_index)
                content += bytes;
        }
        return content;
    }

  private:
    const std::function<void(std::size_t)> at_call_;
    std::mutex mutex_;
    std::map<std::pair<std::size_t, std::uint64_t>, std::string> chunks_;
    std::atomic<std::size_t> calls_{0};
};

void a_sink_hears_of_every_verified_chunk_once() {
    const std::string contents[] = {pattern(5 * kTestChunkBytes + 17), pattern(123)};
    const TemporaryFile files[] = {TemporaryFile(contents[0]), TemporaryFile(contents[1])};
    const FileImage images[] = {FileImage::open(files[0].path()), FileImage::open(files[1].path())};
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfers[] = {{&images[0], {memory.span()}}, {&images[1], {memory.span().last(4096)}}};
    ReadJob job;
    Recorder sink;
    static_cast<void>(Reader(4, kTestChunkBytes, 0).read(transfers, job, &sink));
    CHECK(sink.calls() == 7 && sink.content_of(0) == contents[0] && sink.content_of(1) == contents[1]);
}

void a_corrupted_chunk_never_reaches_the_sink_and_a_sink_may_end_the_read() {
    const TemporaryFile file(pattern(2 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    std::vector<Digest> hashes = hash_chunks(image, 1, job, kTestChunkBytes);
    hashes[0].low ^= 1;
    Recorder sink;
    const Transfer verified{&image, {memory.span()}, hashes};
    CHECK_THROWS(CheckpointCorrupted, Reader(1, kTestChunkBytes, 0).read({&verified, 1}, job, &sink));
    CHECK(sink.calls() == 0);
    Recorder failing([](std::size_t) { throw OutOfMemory("the device is full"); });
    const Transfer transfer{&image, {memory.span()}};
    CHECK_THROWS(OutOfMemory, Reader(1, kTestChunkBytes, 0).read({&transfer, 1}, job, &failing));
    CHECK(failing.calls() == 1);
}

// One thread, so that every chunk but the first is begun after the sink paused the job.
void a_paused_job_begins_no_chunk_until_it_is_resumed() {
    const std::string content = pattern(4 * kTestChunkBytes);
    const TemporaryFile file(content);
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    std::promise<void> paused;
    Recorder sink([&](std::size_t calls) {
        if (calls == 1) {
            job.pause();
            paused.set_value();
        }
    });
    const auto reading = std::async(
        std::launch::async, [&] { static_cast<void>(Reader(1, kTestChunkBytes, 0).read({&transfer, 1}, job, &sink)); });
    paused.get_future().wait();
    CHECK(reading.wait_for(std::chrono::milliseconds(20)) == std::future_status::timeout);
    CHECK(job.is_paused() && sink.calls() == 1);
    job.resume();
    reading.wait();
    CHECK(sink.content_of(0) == content && job.bytes_done() == content.size());
}

void a_paused_job_still_cancels() {
    const TemporaryFile file(pattern(2 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    job.pause();
    auto reading =
        std::async(std::launch::async, [&] { return Reader(2, kTestChunkBytes, 0).read({&transfer, 1}, job); });
    job.cancel();
    CHECK_THROWS(ReadCancelled, reading.get());
    CHECK(job.bytes_done() == 0);
}

void a_cancelled_job_reads_nothing() {
    const TemporaryFile file(pattern(kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    job.cancel();
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 0).read({&transfer, 1}, job));
}

void a_throttled_read_can_be_cancelled_from_another_thread() {
    const TemporaryFile file(pattern(8 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    const std::jthread canceller([&] { job.cancel(); });
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 1).read({&transfer, 1}, job));
}

void a_throttled_read_takes_its_time() {
    const TemporaryFile file(pattern(4 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    const auto begin = std::chrono::steady_clock::now();
    const ReadReport report = Reader(4, kTestChunkBytes, 40 * kTestChunkBytes).read({&transfer, 1}, job);
    CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(100));
    CHECK(report.page_cache_bytes == 0);
}

void a_file_that_shrank_is_an_error() {
    const TemporaryFile file(pattern(3 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    CHECK(::truncate(file.path().c_str(), 100) == 0);
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    CHECK_THROWS(CheckpointTruncated, Reader(2, kTestChunkBytes, 0).read({&transfer, 1}, job));
}

void hashed_chunks_are_verified_and_one_wrong_byte_is_an_error() {
    const std::string content = pattern(3 * kTestChunkBytes + 17);
    const TemporaryFile file(content);
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    const std::vector<Digest> hashes = hash_chunks(FileImage::open(file.path()), 2, job, kTestChunkBytes);
    const FileImage image = FileImage::open(file.path());
    static_cast<void>(
        Reader(3, kTestChunkBytes, 0).read(std::vector<Transfer>{{&image, {memory.span()}, hashes}}, job));
    CHECK(std::memcmp(memory.data(), content.data(), content.size()) == 0);
    for (std::size_t chunk = 0; chunk < hashes.size(); ++chunk) {
        std::string corrupted = content;
        corrupted[chunk * kTestChunkBytes + 16] ^= 1;
        file.write(corrupted);
        const FileImage broken = FileImage::open(file.path());
        const std::vector<Transfer> transfers{{&broken, {memory.span()}, hashes}};
        CHECK_THROWS(CheckpointCorrupted, Reader(3, kTestChunkBytes, 0).read(transfers, job));
    }
}

void bad_arguments_are_refused() {
    CHECK_THROWS(std::invalid_argument, Reader(0, kTestChunkBytes, 0));
    CHECK_THROWS(std::invalid_argument, Reader(1, 1000, 0));
    const TemporaryFile file(pattern(100));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    for (const Transfer& transfer :
         {Transfer{&image, {memory.span().first(100)}}, Transfer{&image, {memory.span().subspan(8)}},
          Transfer{&image, {}},
          Transfer{&image, {memory.span().first(4096), memory.span().subspan(kTestChunkBytes)}}}) {
        CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0).read({&transfer, 1}, job));
    }
    const std::vector<Digest> too_many(2);
    const Transfer transfer{&image, {memory.span()}, too_many};
    CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0).read({&transfer, 1}, job));
}

}  // namespace

int main() {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{kTestChunkBytes},
                                    std::size_t{3 * kTestChunkBytes + 1}}) {
        files_arrive_whole(bytes, true);
        files_arrive_whole(bytes, false);
    }
    several_files_share_the_threads();
    a_file_may_lie_in_pieces();
    a_sink_hears_of_every_verified_chunk_once();
    a_corrupted_chunk_never_reaches_the_sink_and_a_sink_may_end_the_read();
    a_paused_job_begins_no_chunk_until_it_is_resumed();
    a_paused_job_still_cancels();
    a_cancelled_job_reads_nothing();
    a_throttled_read_can_be_cancelled_from_another_thread();
    a_throttled_read_takes_its_time();
    a_file_that_shrank_is_an_error();
    hashed_chunks_are_verified_and_one_wrong_byte_is_an_error();
    bad_arguments_are_refused();
}
