#include "numa.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "aligned_mapping.h"
#include "arena.h"
#include "check.h"

using namespace serverless_triton::loader;

namespace {

using Nodes = std::vector<unsigned>;

void lists_of_nodes_are_read_as_the_kernel_writes_them() {
    CHECK((parse_node_list("0\n") == Nodes{0}));
    CHECK((parse_node_list("0-1,3\n") == Nodes{0, 1, 3}));
    CHECK((parse_node_list("4,2,2-3") == Nodes{2, 3, 4}));
}

void malformed_lists_name_no_node() {
    for (const char* text : {"", "\n", "a", "0-", "-1", "3-1", "0,,1", "0 1", "0-1-2", "99999", "4294967296"})
        CHECK(parse_node_list(text).empty());
}

// A directory that tells of nodes the way sysfs does.
class NodeDirectory {
  public:
    explicit NodeDirectory(const std::string& nodes) : file_("") {
        path_ = std::filesystem::path(file_.path()).parent_path();
        std::ofstream(path_ / "has_memory") << nodes;
    }
    NodeDirectory(const NodeDirectory&) = delete;
    NodeDirectory& operator=(const NodeDirectory&) = delete;
    ~NodeDirectory() { std::filesystem::remove(path_ / "has_memory"); }

    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  private:
    TemporaryFile file_;
    std::filesystem::path path_;
};

void nodes_are_found_where_the_kernel_tells_of_them() {
    CHECK((memory_nodes(NodeDirectory("0-1\n").path()) == Nodes{0, 1}));
    CHECK(memory_nodes("/nonexistent").empty());
}

void an_arena_on_one_node_is_not_interleaved() {
    CHECK(Arena(kHugePageBytes, PageKind::kSmall, NodeDirectory("0\n").path()).interleaved_nodes().empty());
}

void an_arena_lives_on_where_the_kernel_has_no_such_nodes() {
    const Arena arena(kHugePageBytes, PageKind::kSmall, NodeDirectory("1000-1001\n").path());
    CHECK(arena.interleaved_nodes().empty());
    arena.span()[0] = std::byte{1};
}

// Node 0 is everywhere; the kernel leaves out those of the others that it doesn't have.
void an_arena_on_several_nodes_is_interleaved() {
    AlignedMapping memory(kHugePageBytes);
    const bool has_policies = interleave(memory.span(), {0});
    const Arena arena(kHugePageBytes, PageKind::kSmall, NodeDirectory("0-1\n").path());
    CHECK((arena.interleaved_nodes() == (has_policies ? Nodes{0, 1} : Nodes{})));
    arena.span()[0] = std::byte{1};
}

}  // namespace

int main() {
    lists_of_nodes_are_read_as_the_kernel_writes_them();
    malformed_lists_name_no_node();
    nodes_are_found_where_the_kernel_tells_of_them();
    an_arena_on_one_node_is_not_interleaved();
    an_arena_lives_on_where_the_kernel_has_no_such_nodes();
    an_arena_on_several_nodes_is_interleaved();
}
