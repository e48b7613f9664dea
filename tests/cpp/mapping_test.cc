#include "mapping.h"

#include <fcntl.h>

#include <algorithm>

#include "check.h"
#include "unique_fd.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kBytes = 3 * 4096;

void anonymous_memory_is_zero() {
    const Mapping mapping = Mapping::anonymous(kBytes);
    CHECK(std::ranges::all_of(mapping.span(), [](std::byte b) { return b == std::byte{0}; }));
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
}

}  // namespace

int main() {
    anonymous_memory_is_zero();
    a_copy_on_write_mapping_leaves_the_file_alone();
    an_empty_mapping_is_no_error();
}
