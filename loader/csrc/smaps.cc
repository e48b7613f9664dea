#include "smaps.h"

#include <array>
#include <charconv>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

namespace serverless_triton::loader {
namespace {

// A mapping's first line begins "7f817f600000-7f817fe00000 rw-s".
struct AddressRange {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
};

std::optional<AddressRange> address_range_in(std::string_view line) {
    AddressRange range;
    const auto first = std::from_chars(line.data(), line.data() + line.size(), range.begin, 16);
    if (first.ec != std::errc() || first.ptr == line.data() + line.size() || *first.ptr != '-')
        return std::nullopt;
    const auto second = std::from_chars(first.ptr + 1, line.data() + line.size(), range.end, 16);
    if (second.ec != std::errc())
        return std::nullopt;
    return range;
}

// The bytes in a line like "ShmemPmdMapped:     8192 kB", 0 for any other line.
std::uint64_t huge_bytes_in(std::string_view line) {
    constexpr std::array<std::string_view, 4> kNames{
        "ShmemPmdMapped:", "FilePmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"};
    for (const std::string_view name : kNames) {
        if (!line.starts_with(name))
            continue;
        std::uint64_t kilobytes = 0;
        const std::size_t digits = line.find_first_of("0123456789");
        if (digits != std::string_view::npos)
            std::from_chars(line.data() + digits, line.data() + line.size(), kilobytes);
        return kilobytes * 1024;
    }
    return 0;
}

}  // namespace

std::uint64_t huge_bytes_of(std::istream& smaps, std::uintptr_t begin, std::uintptr_t end) {
    std::uint64_t bytes = 0;
    bool is_ours = false;
    for (std::string line; std::getline(smaps, line);) {
        if (const auto range = address_range_in(line))
            is_ours = begin <= range->begin && range->end <= end;
        else if (is_ours)
            bytes += huge_bytes_in(line);
    }
    return bytes;
}

std::uint64_t huge_bytes_of(const std::byte* begin, std::uint64_t bytes) {
    std::ifstream smaps("/proc/self/smaps");
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    return huge_bytes_of(smaps, address, address + bytes);
}

}  // namespace serverless_triton::loader
