#include "file_image.h"

#include <unistd.h>

#include <cstring>
#include <vector>

#include "check.h"
#include "errors.h"

using namespace serverless_triton::loader;

namespace {

void missing_files_and_directories_are_told_apart() {
    CHECK_THROWS(CheckpointNotFound, FileImage::open("/nowhere/model.safetensors"));
    CHECK_THROWS(CheckpointUnreadable, FileImage::open("/"));
}

void a_range_reads_as_it_was_written() {
    const std::string content = pattern(10'000);
    const TemporaryFile file(content);
    std::vector<std::byte> bytes(5'000);
    FileImage::open(file.path()).read(4'321, bytes);
    CHECK(std::memcmp(bytes.data(), content.data() + 4'321, bytes.size()) == 0);
}

void a_file_that_shrinks_while_open_is_noticed() {
    const TemporaryFile file(pattern(10'000));
    const FileImage image = FileImage::open(file.path());
    CHECK(image.is_unchanged());
    CHECK(::truncate(file.path().c_str(), 100) == 0);
    std::vector<std::byte> bytes(10'000);
    CHECK_THROWS(CheckpointTruncated, image.read(0, bytes));
    CHECK(!image.is_unchanged());
}

void a_file_just_read_is_in_the_page_cache() {
    const TemporaryFile file(pattern(100'000));
    const FileImage image = FileImage::open(file.path());
    std::vector<std::byte> bytes(100'000);
    image.read(0, bytes);
    CHECK(image.is_resident(0, 100'000));
    CHECK(image.is_resident(99'999, 1) && image.is_resident(5, 0));
}

}  // namespace

int main() {
    missing_files_and_directories_are_told_apart();
    a_range_reads_as_it_was_written();
    a_file_that_shrinks_while_open_is_noticed();
    a_file_just_read_is_in_the_page_cache();
}
