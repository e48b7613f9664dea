#include "memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kBytes = 3 * 4096;

MemoryFile sealed_file() {
    MemoryFile file(kBytes);
    std::ranges::fill(file.span(), std::byte{7});
    file.seal();
    return file;
}

void a_reader_sees_what_was_written_before_the_seal() {
    const MemoryFile file = sealed_file();
    const Mapping mapping = Mapping::read_only(file.fd(), kBytes);
    CHECK(std::ranges::all_of(mapping.span(), [](std::byte b) { return b == std::byte{7}; }));
    CHECK(!mapping.is_writable());
}

void a_sealed_file_cannot_be_changed_through_any_descriptor() {
    const MemoryFile file = sealed_file();
    const std::string again = "/proc/self/fd/" + std::to_string(file.fd());
    const UniqueFd reopened(::open(again.c_str(), O_RDWR | O_CLOEXEC));
    for (const int fd : {file.fd(), reopened.get()}) {
        CHECK(::pwrite(fd, "x", 1, 0) == -1);
        CHECK(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
        CHECK(::ftruncate(fd, 0) == -1 && ::ftruncate(fd, 2 * kBytes) == -1);
        CHECK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == -1);
        CHECK(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == -1);
    }
}

void a_sealed_file_gives_no_span() {
    CHECK_THROWS(std::logic_error, sealed_file().span());
}

void a_copy_on_write_mapping_leaves_the_file_alone() {
    const TemporaryFile file(pattern(kBytes));
    const UniqueFd fd(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
    const Mapping first = Mapping::copy_on_write(fd.get(), kBytes);
    const std::byte before = first.data()[0];
    first.data()[0] = std::byte{255};
    const Mapping second = Mapping::copy_on_write(fd.get(), kBytes);
    CHECK(second.data()[0] == before);
}

void an_empty_mapping_is_no_error() {
    CHECK(Mapping::anonymous(0).span().empty());
    MemoryFile empty(0);
    empty.seal();
    CHECK(Mapping::read_only(empty.fd(), 0).span().empty());
}

}  // namespace

int main() {
    a_reader_sees_what_was_written_before_the_seal();
    a_sealed_file_cannot_be_changed_through_any_descriptor();
    a_sealed_file_gives_no_span();
    a_copy_on_write_mapping_leaves_the_file_alone();
    an_empty_mapping_is_no_error();
}
