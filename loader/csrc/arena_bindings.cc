#include "arena_bindings.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "arena_mapping.h"
#include "read_job.h"

namespace py = pybind11;

namespace serverless_triton::loader {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

std::optional<PageKind> wanted_kind(const std::string& pages) {
    if (pages == "auto")
        return std::nullopt;
    const auto kind = page_kind_from(pages);
    if (!kind)
        throw py::value_error("pages must be auto, hugetlb, tmpfs, memfd or 4k, not " + pages);
    return kind;
}

std::unique_ptr<Arena> create_arena(std::uint64_t bytes, const std::string& pages,
                                    const std::filesystem::path& node_root) {
    const std::optional<PageKind> kind = wanted_kind(pages);
    const py::gil_scoped_release release;
    return std::make_unique<Arena>(bytes, kind, node_root);
}

void write_bytes(const Arena& arena, std::uint64_t offset, const py::buffer& data) {
    const py::buffer_info info = data.request();
    if (info.itemsize != 1 || info.ndim != 1)
        throw py::type_error("expected a one-dimensional buffer of bytes");
    const py::gil_scoped_release release;
    arena.write(offset, {static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size)});
}

ArenaSlice scattered(int fd, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& pairs) {
    std::vector<Piece> pieces;
    for (const auto& [offset, length] : pairs)
        pieces.push_back({offset, length});
    const py::gil_scoped_release release;
    return ArenaMapping::scattered(fd, pieces);
}

py::buffer_info buffer_of(std::span<const std::byte> bytes, bool is_read_only) {
    const auto size = static_cast<py::ssize_t>(bytes.size());
    return {const_cast<std::byte*>(bytes.data()), 1, "B", 1, {size}, {py::ssize_t{1}}, is_read_only};
}

}  // namespace

void bind_arena(py::module_& m) {
    m.attr("HUGE_PAGE_BYTES") = kHugePageBytes;
    py::class_<Arena>(m, "Arena", py::buffer_protocol())
        .def(py::init(&create_arena), py::arg("size_bytes"), py::arg("pages") = "auto", py::kw_only(),
             py::arg("node_root") = "/sys/devices/system/node")
        .def_property_readonly("kind", [](const Arena& arena) { return name_of(arena.kind()); })
        .def_property_readonly("page_bytes", &Arena::page_bytes)
        .def_property_readonly("bytes", &Arena::bytes)
        .def_property_readonly("interleaved_nodes", &Arena::interleaved_nodes)
        .def("huge_bytes", &Arena::huge_bytes, ReleaseGil())
        .def("client_fd", &Arena::client_fd)
        .def("prefault", &Arena::prefault, py::arg("begin"), py::arg("end"), py::arg("job"), ReleaseGil())
        .def("move", &Arena::move, py::arg("source"), py::arg("target"), py::arg("length"), py::arg("job"),
             ReleaseGil())
        .def("write", &write_bytes, py::arg("offset"), py::arg("data"))
        .def(
            "hash",
            [](const Arena& arena, std::uint64_t offset, std::uint64_t length) {
                return to_hex(arena.hash(offset, length));
            },
            py::arg("offset"), py::arg("length"), ReleaseGil())
        .def_buffer([](const Arena& arena) { return buffer_of(arena.span(), false); });
    py::class_<ArenaSlice>(m, "ArenaSlice", py::buffer_protocol())
        .def_property_readonly("bytes", &ArenaSlice::bytes)
        .def_buffer([](const ArenaSlice& slice) { return buffer_of(slice.span(), true); });
    py::class_<ArenaMapping>(m, "ArenaMapping")
        .def(py::init<int, std::uint64_t>(), py::arg("fd"), py::arg("size_bytes"), ReleaseGil())
        .def_static("scattered", &scattered, py::arg("fd"), py::arg("pieces"))
        .def_property_readonly("bytes", &ArenaMapping::bytes)
        .def("huge_bytes", &ArenaMapping::huge_bytes, ReleaseGil())
        .def("populate", &ArenaMapping::populate, py::arg("job"), ReleaseGil())
        .def("slice", &ArenaMapping::slice, py::arg("offset"), py::arg("length"), ReleaseGil());
}

}  // namespace serverless_triton::loader
