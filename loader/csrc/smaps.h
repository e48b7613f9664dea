// What the kernel says about this process's memory in /proc/self/smaps. Callable from any thread; costs time in
// proportion to what is mapped, so nothing calls it on a hot path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>

namespace serverless_triton::loader {

// How many bytes of [begin, begin + bytes) are mapped by 2 MiB pages, whether of hugetlb or transparent ones. 0 where
// the kernel does not say.
[[nodiscard]] std::uint64_t huge_bytes_of(const std::byte* begin, std::uint64_t bytes);

// The same from text in the format of smaps.
[[nodiscard]] std::uint64_t huge_bytes_of(std::istream& smaps, std::uintptr_t begin, std::uintptr_t end);

}  // namespace serverless_triton::loader
