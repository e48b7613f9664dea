#include "smaps.h"

#include <sstream>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

constexpr const char* kText =
    "7f0000000000-7f0000200000 rw-s 00000000 00:27 2                          /elsewhere\n"
    "ShmemPmdMapped:     2048 kB\n"
    "7f0000400000-7f0000c00000 rw-s 00000000 00:27 2                          /arena\n"
    "Size:               8192 kB\n"
    "ShmemPmdMapped:     6144 kB\n"
    "FilePmdMapped:         0 kB\n"
    "Shared_Hugetlb:        0 kB\n"
    "VmFlags: rd wr sh mr mw ms \n"
    "7f0000c00000-7f0000e00000 r--s 00000000 00:0f 3                          /anon_hugepage (deleted)\n"
    "Shared_Hugetlb:     2048 kB\n";

void huge_pages_of_every_sort_count_and_other_mappings_do_not() {
    std::istringstream text(kText);
    CHECK(huge_bytes_of(text, 0x7f0000400000, 0x7f0000e00000) == 8192 * 1024);
}

void a_mapping_that_is_partly_outside_does_not_count() {
    std::istringstream text(kText);
    CHECK(huge_bytes_of(text, 0x7f0000500000, 0x7f0000c00000) == 0);
}

void text_of_another_form_counts_nothing() {
    std::istringstream text("ShmemPmdMapped: 1 kB\n-\nzz-yy\n7f00\n7f0-\nShmemPmdMapped: kB\n");
    CHECK(huge_bytes_of(text, 0, ~std::uintptr_t{0}) == 0);
}

}  // namespace

int main() {
    huge_pages_of_every_sort_count_and_other_mappings_do_not();
    a_mapping_that_is_partly_outside_does_not_count();
    text_of_another_form_counts_nothing();
}
