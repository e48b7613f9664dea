// The memory nodes of this machine, and memory spread over them. Callable from any thread.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace serverless_triton::loader {

// The numbers in a list such as "0-1,3", ascending; empty where it is malformed.
[[nodiscard]] std::vector<unsigned> parse_node_list(std::string_view text);

// The nodes that have memory, of which `root` (/sys/devices/system/node) tells; empty where it tells nothing.
[[nodiscard]] std::vector<unsigned> memory_nodes(const std::filesystem::path& root);

// Has the pages of `memory`, none of which was touched yet, taken from `nodes` in turn. False where the kernel refuses:
// they then come from the node of whoever touches them first.
[[nodiscard]] bool interleave(std::span<std::byte> memory, const std::vector<unsigned>& nodes);

}  // namespace serverless_triton::loader
