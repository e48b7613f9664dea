#include "numa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <fstream>
#include <string>

namespace serverless_triton::loader {
namespace {

// <numaif.h> is libnuma's; the number is the kernel's interface.
constexpr int kInterleave = 3;
constexpr unsigned kMaxNode = 1023;
constexpr std::size_t kBitsPerWord = CHAR_BIT * sizeof(unsigned long);

// "3" or "0-1".
bool append_range(std::string_view text, std::vector<unsigned>& nodes) {
    unsigned first = 0;
    const char* const end = text.data() + text.size();
    auto parsed = std::from_chars(text.data(), end, first);
    if (parsed.ec != std::errc())
        return false;
    unsigned last = first;
    if (parsed.ptr != end && *parsed.ptr == '-')
        parsed = std::from_chars(parsed.ptr + 1, end, last);
    if (parsed.ec != std::errc() || parsed.ptr != end || last < first || last > kMaxNode)
        return false;
    for (unsigned node = first; node <= last; ++node)
        nodes.push_back(node);
    return true;
}

}  // namespace

std::vector<unsigned> parse_node_list(std::string_view text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
        text.remove_suffix(1);
    std::vector<unsigned> nodes;
    while (!text.empty()) {
        const std::size_t comma = text.find(',');
        if (!append_range(text.substr(0, comma), nodes))
            return {};
        text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    }
    std::ranges::sort(nodes);
    nodes.erase(std::ranges::unique(nodes).begin(), nodes.end());
    return nodes;
}

std::vector<unsigned> memory_nodes(const std::filesystem::path& root) {
    std::ifstream file(root / "has_memory");
    std::string line;
    std::getline(file, line);
    return parse_node_list(line);
}

bool interleave(std::span<std::byte> memory, const std::vector<unsigned>& nodes) {
    if (nodes.empty() || nodes.back() > kMaxNode)
        return false;
    std::vector<unsigned long> mask(nodes.back() / kBitsPerWord + 1);
    for (const unsigned node : nodes)
        mask[node / kBitsPerWord] |= 1UL << (node % kBitsPerWord);
    // The kernel reads one bit less than it is told of.
    const std::size_t bits = mask.size() * kBitsPerWord + 1;
    return ::syscall(SYS_mbind, memory.data(), memory.size(), kInterleave, mask.data(), bits, 0) == 0;
}

}  // namespace serverless_triton::loader
