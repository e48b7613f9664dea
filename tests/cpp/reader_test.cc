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
#include "chunk_hasher.h"
#include "errors.h"
#include "mapping.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kTestChunkBytes = 16 * 4096;
constexpr std::uint64_t kRoomBytes = 64 * kTestChunkBytes;

// Every test runs with each of them.
std::string_view engine = "auto";

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
    const ReadReport report = Reader(3, kTestChunkBytes, 0, engine).read({&transfer, 1}, job);
    CHECK(std::memcmp(memory.data(), content.data(), bytes) == 0);
    CHECK(job.bytes_done() == bytes && report.disk_bytes + report.page_cache_bytes == bytes);
    CHECK(report.direct_bytes <= report.disk_bytes);
    const bool by_uring = choose_engine(engine) == Engine::kUring && uring_reads(image);
    CHECK(report.uring_bytes == (by_uring ? report.direct_bytes : 0));
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
    static_cast<void>(Reader(4, kTestChunkBytes, 0, engine).read(transfers, job));
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
    static_cast<void>(Reader(3, kTestChunkBytes, 0, engine).read({&transfer, 1}, job));
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

    void restart() override { chunks_.clear(); }

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
    static_cast<void>(Reader(4, kTestChunkBytes, 0, engine).read(transfers, job, &sink));
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
    CHECK_THROWS(CheckpointCorrupted, Reader(1, kTestChunkBytes, 0, engine).read({&verified, 1}, job, &sink));
    CHECK(sink.calls() == 0);
    Recorder failing([](std::size_t) { throw OutOfMemory("the device is full"); });
    const Transfer transfer{&image, {memory.span()}};
    CHECK_THROWS(OutOfMemory, Reader(1, kTestChunkBytes, 0, engine).read({&transfer, 1}, job, &failing));
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
    const auto reading = std::async(std::launch::async, [&] {
        static_cast<void>(Reader(1, kTestChunkBytes, 0, engine).read({&transfer, 1}, job, &sink));
    });
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
        std::async(std::launch::async, [&] { return Reader(2, kTestChunkBytes, 0, engine).read({&transfer, 1}, job); });
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
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 0, engine).read({&transfer, 1}, job));
}

void a_throttled_read_can_be_cancelled_from_another_thread() {
    const TemporaryFile file(pattern(8 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    const std::jthread canceller([&] { job.cancel(); });
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 1, engine).read({&transfer, 1}, job));
}

void a_throttled_read_takes_its_time() {
    const TemporaryFile file(pattern(4 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, {memory.span()}};
    ReadJob job;
    const auto begin = std::chrono::steady_clock::now();
    const ReadReport report = Reader(4, kTestChunkBytes, 40 * kTestChunkBytes, engine).read({&transfer, 1}, job);
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
    CHECK_THROWS(CheckpointTruncated, Reader(2, kTestChunkBytes, 0, engine).read({&transfer, 1}, job));
}

void hashed_chunks_are_verified_and_one_wrong_byte_is_an_error() {
    const std::string content = pattern(3 * kTestChunkBytes + 17);
    const TemporaryFile file(content);
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    const std::vector<Digest> hashes = hash_chunks(FileImage::open(file.path()), 2, job, kTestChunkBytes);
    const FileImage image = FileImage::open(file.path());
    static_cast<void>(
        Reader(3, kTestChunkBytes, 0, engine).read(std::vector<Transfer>{{&image, {memory.span()}, hashes}}, job));
    CHECK(std::memcmp(memory.data(), content.data(), content.size()) == 0);
    for (std::size_t chunk = 0; chunk < hashes.size(); ++chunk) {
        std::string corrupted = content;
        corrupted[chunk * kTestChunkBytes + 16] ^= 1;
        file.write(corrupted);
        const FileImage broken = FileImage::open(file.path());
        const std::vector<Transfer> transfers{{&broken, {memory.span()}, hashes}};
        CHECK_THROWS(CheckpointCorrupted, Reader(3, kTestChunkBytes, 0, engine).read(transfers, job));
    }
}

void bad_arguments_are_refused() {
    CHECK_THROWS(std::invalid_argument, Reader(0, kTestChunkBytes, 0, engine));
    CHECK_THROWS(std::invalid_argument, Reader(1, 1000, 0, engine));
    const TemporaryFile file(pattern(100));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    for (const Transfer& transfer :
         {Transfer{&image, {memory.span().first(100)}}, Transfer{&image, {memory.span().subspan(8)}},
          Transfer{&image, {}},
          Transfer{&image, {memory.span().first(4096), memory.span().subspan(kTestChunkBytes)}}}) {
        CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0, engine).read({&transfer, 1}, job));
    }
    const std::vector<Digest> too_many(2);
    const Transfer transfer{&image, {memory.span()}, too_many};
    CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0, engine).read({&transfer, 1}, job));
}

void only_the_wanted_ranges_are_read() {
    const std::string content = pattern(9 * kTestChunkBytes + 17);
    const TemporaryFile file(content);
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const std::uint64_t last = 9 * kTestChunkBytes + 3;
    const Transfer transfer{
        &image,
        {memory.span().first(2 * kTestChunkBytes), memory.span().subspan(3 * kTestChunkBytes)},
        {},
        std::vector<ByteRange>{{10, 20}, {2 * kTestChunkBytes - 1, 2 * kTestChunkBytes + 1}, {last, last + 5}}};
    ReadJob job;
    const ReadReport report = Reader(3, kTestChunkBytes, 0, engine).read({&transfer, 1}, job);
    CHECK(job.bytes_done() == 3 * 4096 + 17 && report.disk_bytes + report.page_cache_bytes == job.bytes_done());
    const auto same = [&](std::uint64_t in_memory, std::uint64_t in_file, std::uint64_t length) {
        return std::memcmp(memory.data() + in_memory, content.data() + in_file, length) == 0;
    };
    CHECK(same(10, 10, 10) && same(2 * kTestChunkBytes - 1, 2 * kTestChunkBytes - 1, 1));
    CHECK(same(3 * kTestChunkBytes, 2 * kTestChunkBytes, 1) && same(last + kTestChunkBytes, last, 5));
    CHECK(memory.data()[kTestChunkBytes] == std::byte{0});
}

void columns_are_gathered_and_verified() {
    const std::string content = pattern(6 * kTestChunkBytes + 100);
    const TemporaryFile file(content);
    const FileImage image = FileImage::open(file.path());
    std::string rows(40 * 300, '\0');
    std::string slice(2 * kTestChunkBytes, '\0');
    const StridedCopy columns{.begin = 50,
                              .rows = 40,
                              .row_bytes = 2'000,
                              .keep_begin = 700,
                              .keep_bytes = 300,
                              .target = std::as_writable_bytes(std::span(rows))};
    const StridedCopy range{.begin = 3 * kTestChunkBytes + 9,
                            .rows = 1,
                            .row_bytes = 3 * kTestChunkBytes,
                            .keep_begin = 100,
                            .keep_bytes = 2 * kTestChunkBytes,
                            .target = std::as_writable_bytes(std::span(slice))};
    ReadJob job;
    std::vector<Digest> hashes = hash_chunks(image, 1, job, kTestChunkBytes);
    for (const bool verify : {false, true}) {
        const std::span<const Digest> known = verify ? std::span<const Digest>(hashes) : std::span<const Digest>();
        const Gathering gathering{&image, {range, columns}, known};
        static_cast<void>(Reader(3, kTestChunkBytes, 0, engine).gather({&gathering, 1}, job));
        for (std::size_t row = 0; row < 40; ++row)
            CHECK(rows.compare(row * 300, 300, content, 50 + row * 2'000 + 700, 300) == 0);
        CHECK(slice == content.substr(3 * kTestChunkBytes + 109, 2 * kTestChunkBytes));
    }
    hashes[4].low ^= 1;
    const Gathering corrupted{&image, {range, columns}, hashes};
    CHECK_THROWS(CheckpointCorrupted, Reader(3, kTestChunkBytes, 0, engine).gather({&corrupted, 1}, job));
    const Gathering overlapping{&image, {columns, columns}};
    CHECK_THROWS(std::invalid_argument, Reader(3, kTestChunkBytes, 0, engine).gather({&overlapping, 1}, job));
}

void an_unknown_engine_is_refused() {
    CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0, "aio"));
}

void run_all() {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{kTestChunkBytes},
                                    std::size_t{17 * kTestChunkBytes + 1}}) {
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
    only_the_wanted_ranges_are_read();
    columns_are_gathered_and_verified();
    bad_arguments_are_refused();
}

}  // namespace

int main() {
    for (const std::string_view each : {"pread", "auto"}) {
        engine = each;
        run_all();
    }
    an_unknown_engine_is_refused();
}
