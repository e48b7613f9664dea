#include "reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "errors.h"
#include "memory_file.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kChunkBytes = 16 * 4096;
constexpr std::uint64_t kRoomBytes = 64 * kChunkBytes;

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
    const Transfer transfer{&image, memory.span()};
    const ReadReport report = Reader(3, kChunkBytes, 0).read({&transfer, 1}, job);
    CHECK(std::memcmp(memory.data(), content.data(), bytes) == 0);
    CHECK(job.bytes_done() == bytes && report.disk_bytes + report.page_cache_bytes == bytes);
    CHECK(report.direct_bytes <= report.disk_bytes);
    if (cached)
        CHECK(report.page_cache_bytes == bytes);
}

void several_files_share_the_threads() {
    const std::string one = pattern(5 * kChunkBytes + 17);
    const std::string two = pattern(123);
    const TemporaryFile first(one);
    const TemporaryFile second(two);
    const FileImage images[] = {FileImage::open(first.path()), FileImage::open(second.path())};
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfers[] = {{&images[0], memory.span()}, {&images[1], memory.span().subspan(kRoomBytes / 2)}};
    ReadJob job;
    static_cast<void>(Reader(4, kChunkBytes, 0).read(transfers, job));
    CHECK(std::memcmp(memory.data(), one.data(), one.size()) == 0);
    CHECK(std::memcmp(memory.data() + kRoomBytes / 2, two.data(), two.size()) == 0);
}

void a_cancelled_job_reads_nothing() {
    const TemporaryFile file(pattern(kChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    job.cancel();
    CHECK_THROWS(ReadCancelled, Reader(2, kChunkBytes, 0).read({&transfer, 1}, job));
}

void a_throttled_read_can_be_cancelled_from_another_thread() {
    const TemporaryFile file(pattern(8 * kChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    const std::jthread canceller([&] { job.cancel(); });
    CHECK_THROWS(ReadCancelled, Reader(2, kChunkBytes, 1).read({&transfer, 1}, job));
}

void a_throttled_read_takes_its_time() {
    const TemporaryFile file(pattern(4 * kChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    const auto begin = std::chrono::steady_clock::now();
    const ReadReport report = Reader(4, kChunkBytes, 40 * kChunkBytes).read({&transfer, 1}, job);
    CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(100));
    CHECK(report.page_cache_bytes == 0);
}

void a_file_that_shrank_is_an_error() {
    const TemporaryFile file(pattern(3 * kChunkBytes));
    const FileImage image = FileImage::open(file.path());
    CHECK(::truncate(file.path().c_str(), 100) == 0);
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    CHECK_THROWS(CheckpointTruncated, Reader(2, kChunkBytes, 0).read({&transfer, 1}, job));
}

void bad_arguments_are_refused() {
    CHECK_THROWS(std::invalid_argument, Reader(0, kChunkBytes, 0));
    CHECK_THROWS(std::invalid_argument, Reader(1, 1000, 0));
    const TemporaryFile file(pattern(100));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    ReadJob job;
    for (const Transfer& transfer :
         {Transfer{&image, memory.span().first(100)}, Transfer{&image, memory.span().subspan(8)}}) {
        CHECK_THROWS(std::invalid_argument, Reader(1, kChunkBytes, 0).read({&transfer, 1}, job));
    }
}

}  // namespace

int main() {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{kChunkBytes},
                                    std::size_t{3 * kChunkBytes + 1}}) {
        files_arrive_whole(bytes, true);
        files_arrive_whole(bytes, false);
    }
    several_files_share_the_threads();
    a_cancelled_job_reads_nothing();
    a_throttled_read_can_be_cancelled_from_another_thread();
    a_throttled_read_takes_its_time();
    a_file_that_shrank_is_an_error();
    bad_arguments_are_refused();
}
