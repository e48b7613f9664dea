#include "reader_bindings.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "chunk_grid.h"
#include "chunk_hasher.h"
#include "chunk_sink.h"
#include "file_image.h"
#include "mapping.h"
#include "read_job.h"
#include "reader.h"
#include "strided_copy.h"

namespace py = pybind11;

namespace serverless_triton::loader {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;
using Pair = std::pair<std::uint64_t, std::uint64_t>;
using Files = std::vector<const FileImage*>;
// Hashes as hexadecimal text, the way Python reads and writes them.
using HexDigests = std::vector<std::string>;
template <typename Item>
using PerFile = std::vector<Item>;

std::vector<Digest> digests_of(const HexDigests& texts) {
    std::vector<Digest> digests;
    for (const std::string& text : texts) {
        const auto digest = from_hex(text);
        if (!digest)
            throw py::value_error("a hash is 32 lower-case hexadecimal digits");
        digests.push_back(*digest);
    }
    return digests;
}

// No list at all stands for an empty one of every file.
PerFile<std::vector<Digest>> digests_of(const PerFile<HexDigests>& texts, std::size_t files) {
    if (!texts.empty() && texts.size() != files)
        throw py::value_error("one list of hashes is needed for each file, or none at all");
    PerFile<std::vector<Digest>> digests(files);
    for (std::size_t i = 0; i < texts.size(); ++i)
        digests[i] = digests_of(texts[i]);
    return digests;
}

HexDigests hash_file(const FileImage& file, unsigned threads, ReadJob& job) {
    const py::gil_scoped_release release;
    HexDigests texts;
    for (const Digest& digest : hash_chunks(file, threads, job))
        texts.push_back(to_hex(digest));
    return texts;
}

void verify_file(const FileImage& file, const HexDigests& expected, unsigned threads, ReadJob& job) {
    const std::vector<Digest> digests = digests_of(expected);
    const py::gil_scoped_release release;
    verify_chunks(file, digests, threads, job);
}

std::vector<ByteRange> ranges_from(const std::vector<Pair>& pairs) {
    std::vector<ByteRange> ranges;
    for (const auto& [begin, end] : pairs)
        ranges.push_back({begin, end});
    return ranges;
}

std::uint64_t bytes_to_read(const FileImage& file, const std::vector<Pair>& ranges, bool is_verified) {
    const std::vector<Digest> hashes(is_verified ? chunks_in(file.bytes(), kChunkBytes) : 0);
    std::uint64_t bytes = 0;
    for (const Chunk& chunk : cut(file, hashes, kChunkBytes, ranges_from(ranges)))
        bytes += chunk.length;
    return bytes;
}

void verify_memory(const FileImage& file, const py::buffer& memory, const HexDigests& expected,
                   const std::optional<std::vector<Pair>>& pairs, unsigned threads, ReadJob& job) {
    const py::buffer_info info = memory.request();
    if (info.itemsize != 1 || info.ndim != 1)
        throw py::type_error("expected a one-dimensional buffer of bytes");
    const std::span bytes(static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size));
    const std::vector<Digest> digests = digests_of(expected);
    const auto ranges = pairs ? std::optional(ranges_from(*pairs)) : std::nullopt;
    const py::gil_scoped_release release;
    verify_mapped(file, bytes, digests, threads, job, ranges);
}

std::span<std::byte> part_of(std::span<std::byte> memory, std::uint64_t offset, std::uint64_t length) {
    if (offset > memory.size() || length > memory.size() - offset)
        throw py::value_error("a piece lies past the end of the memory");
    return memory.subspan(offset, length);
}

std::vector<std::span<std::byte>> parts_of(std::span<std::byte> memory, const std::vector<Pair>& pieces) {
    std::vector<std::span<std::byte>> parts;
    for (const auto& [offset, length] : pieces)
        parts.push_back(part_of(memory, offset, length));
    return parts;
}

// `pieces`: for each file (offset, length) into the memory; `ranges`: for each file (begin, end) in it, None for all of
// it.
template <typename Memory>
ReadReport read_into(Reader& reader, const Files& files, Memory& memory, const PerFile<std::vector<Pair>>& pieces,
                     ReadJob& job, const PerFile<HexDigests>& hashes, ChunkSink* sink,
                     const std::optional<PerFile<std::vector<Pair>>>& ranges) {
    if (files.size() != pieces.size() || (ranges && files.size() != ranges->size()))
        throw py::value_error("one list of pieces, and one of ranges if any, is needed for each file");
    const PerFile<std::vector<Digest>> digests = digests_of(hashes, files.size());
    std::vector<Transfer> transfers;
    for (std::size_t i = 0; i < files.size(); ++i) {
        transfers.push_back({files[i], parts_of(memory.span(), pieces[i]), digests[i]});
        if (ranges)
            transfers.back().ranges = ranges_from((*ranges)[i]);
    }
    const py::gil_scoped_release release;
    return reader.read(transfers, job, sink);
}

// A strided copy whose target is still an offset into some memory.
struct PlannedCopy {
    StridedCopy copy;
    std::uint64_t target = 0;
};

PlannedCopy plan(std::uint64_t begin, std::uint64_t rows, std::uint64_t row_bytes, std::uint64_t keep_begin,
                 std::uint64_t keep_bytes, std::uint64_t target) {
    return {{begin, rows, row_bytes, keep_begin, keep_bytes, {}}, target};
}

std::vector<Pair> ranges_of_plan(const PlannedCopy& planned) {
    std::vector<Pair> pairs;
    for (const ByteRange& range : ranges_of(planned.copy))
        pairs.emplace_back(range.begin, range.end);
    return pairs;
}

ReadReport gather_into(Reader& reader, const Files& files, Mapping& memory,
                       const PerFile<std::vector<PlannedCopy>>& copies, ReadJob& job,
                       const PerFile<HexDigests>& hashes) {
    if (files.size() != copies.size())
        throw py::value_error("one list of copies is needed for each file");
    const PerFile<std::vector<Digest>> digests = digests_of(hashes, files.size());
    std::vector<Gathering> gatherings;
    for (std::size_t i = 0; i < files.size(); ++i) {
        gatherings.push_back({files[i], {}, digests[i]});
        for (PlannedCopy planned : copies[i]) {
            planned.copy.target = part_of(memory.span(), planned.target, target_bytes(planned.copy));
            gatherings.back().copies.push_back(planned.copy);
        }
    }
    const py::gil_scoped_release release;
    return reader.gather(gatherings, job);
}

void tell_chunk(ChunkSink& sink, std::size_t file_index, std::uint64_t offset, const py::buffer& memory,
                std::uint64_t begin, std::uint64_t length) {
    const py::buffer_info info = memory.request();
    if (info.itemsize != 1 || info.ndim != 1)
        throw py::type_error("expected a one-dimensional buffer of bytes");
    const std::span bytes(static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size));
    if (begin > bytes.size() || length > bytes.size() - begin)
        throw py::value_error("a chunk lies past the end of the memory");
    const py::gil_scoped_release release;
    sink.chunk_ready(file_index, offset, length, bytes.data() + begin);
}

void bind_jobs(py::module_& m) {
    py::class_<ReadJob>(m, "ReadJob")
        .def(py::init<>())
        .def("cancel", &ReadJob::cancel)
        .def("pause", &ReadJob::pause)
        .def("resume", &ReadJob::resume)
        .def("proceed", &ReadJob::proceed, ReleaseGil())
        .def("stop_if_cancelled", &ReadJob::stop_if_cancelled)
        .def("add_done", &ReadJob::add_done, py::arg("size_bytes"))
        .def_property_readonly("is_cancelled", &ReadJob::is_cancelled)
        .def_property_readonly("is_paused", &ReadJob::is_paused)
        .def_property_readonly("bytes_done", &ReadJob::bytes_done);
    // Made by those who have somewhere to send chunks on to.
    py::class_<ChunkSink>(m, "ChunkSink")
        .def("chunk_ready", &tell_chunk, py::arg("file_index"), py::arg("offset"), py::arg("memory"), py::arg("begin"),
             py::arg("length"))
        .def("restart", &ChunkSink::restart, ReleaseGil());
    py::class_<ReadReport>(m, "ReadReport")
        .def_readonly("disk_bytes", &ReadReport::disk_bytes)
        .def_readonly("page_cache_bytes", &ReadReport::page_cache_bytes)
        .def_readonly("direct_bytes", &ReadReport::direct_bytes)
        .def_readonly("uring_bytes", &ReadReport::uring_bytes);
    py::class_<PlannedCopy>(m, "StridedCopy")
        .def(py::init(&plan), py::kw_only(), py::arg("begin"), py::arg("rows"), py::arg("row_bytes"),
             py::arg("keep_begin"), py::arg("keep_bytes"), py::arg("target"))
        .def("ranges", &ranges_of_plan);
}

template <typename Memory>
void bind_read(py::class_<Reader>& reader) {
    reader.def("read", &read_into<Memory>, py::arg("files"), py::arg("memory"), py::arg("pieces"), py::arg("job"),
               py::arg("hashes") = PerFile<HexDigests>(), py::arg("sink") = nullptr, py::arg("ranges") = py::none());
}

}  // namespace

void bind_reader(py::module_& m) {
    bind_jobs(m);
    py::class_<Reader> reader(m, "Reader");
    reader
        .def(py::init<unsigned, std::uint64_t, std::uint64_t, const std::string&>(), py::kw_only(), py::arg("threads"),
             py::arg("chunk_bytes") = kChunkBytes, py::arg("bytes_per_second") = 0, py::arg("engine") = "auto")
        .def_property_readonly("bytes_per_second", &Reader::bytes_per_second)
        .def_property_readonly("engine", [](const Reader& self) { return name_of(self.engine()); })
        .def("gather", &gather_into, py::arg("files"), py::arg("memory"), py::arg("copies"), py::arg("job"),
             py::arg("hashes") = PerFile<HexDigests>());
    bind_read<const Arena>(reader);
    bind_read<Mapping>(reader);
    m.attr("CHUNK_BYTES") = kChunkBytes;
    m.def("bytes_to_read", &bytes_to_read, py::arg("file"), py::arg("ranges"), py::kw_only(), py::arg("is_verified"));
    m.def("hash_chunks", &hash_file, py::arg("file"), py::kw_only(), py::arg("threads"), py::arg("job"));
    m.def("verify_chunks", &verify_file, py::arg("file"), py::arg("expected"), py::kw_only(), py::arg("threads"),
          py::arg("job"));
    m.def("verify_memory", &verify_memory, py::arg("file"), py::arg("memory"), py::arg("expected"), py::kw_only(),
          py::arg("ranges") = py::none(), py::arg("threads"), py::arg("job"));
}

}  // namespace serverless_triton::loader
