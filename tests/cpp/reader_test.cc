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
    const Transfer transfer{&image, memory.span()};
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
    const Transfer transfers[] = {{&images[0], memory.span()}, {&images[1], memory.span().subspan(kRoomBytes / 2)}};
    ReadJob job;
    static_cast<void>(Reader(4, kTestChunkBytes, 0).read(transfers, job));
    CHECK(std::memcmp(memory.data(), one.data(), one.size()) == 0);
    CHECK(std::memcmp(memory.data() + kRoomBytes / 2, two.data(), two.size()) == 0);
}

void a_cancelled_job_reads_nothing() {
    const TemporaryFile file(pattern(kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    job.cancel();
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 0).read({&transfer, 1}, job));
}

void a_throttled_read_can_be_cancelled_from_another_thread() {
    const TemporaryFile file(pattern(8 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
    ReadJob job;
    const std::jthread canceller([&] { job.cancel(); });
    CHECK_THROWS(ReadCancelled, Reader(2, kTestChunkBytes, 1).read({&transfer, 1}, job));
}

void a_throttled_read_takes_its_time() {
    const TemporaryFile file(pattern(4 * kTestChunkBytes));
    const FileImage image = FileImage::open(file.path());
    const Mapping memory = Mapping::anonymous(kRoomBytes);
    const Transfer transfer{&image, memory.span()};
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
    const Transfer transfer{&image, memory.span()};
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
    static_cast<void>(Reader(3, kTestChunkBytes, 0).read(std::vector<Transfer>{{&image, memory.span(), hashes}}, job));
    CHECK(std::memcmp(memory.data(), content.data(), content.size()) == 0);
    for (std::size_t chunk = 0; chunk < hashes.size(); ++chunk) {
        std::string corrupted = content;
        corrupted[chunk * kTestChunkBytes + 16] ^= 1;
        file.write(corrupted);
        const FileImage broken = FileImage::open(file.path());
        const std::vector<Transfer> transfers{{&broken, memory.span(), hashes}};
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
         {Transfer{&image, memory.span().first(100)}, Transfer{&image, memory.span().subspan(8)}}) {
        CHECK_THROWS(std::invalid_argument, Reader(1, kTestChunkBytes, 0).read({&transfer, 1}, job));
    }
    const std::vector<Digest> too_many(2);
    const Transfer transfer{&image, memory.span(), too_many};
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
    a_cancelled_job_reads_nothing();
    a_throttled_read_can_be_cancelled_from_another_thread();
    a_throttled_read_takes_its_time();
    a_file_that_shrank_is_an_error();
    hashed_chunks_are_verified_and_one_wrong_byte_is_an_error();
    bad_arguments_are_refused();
}
