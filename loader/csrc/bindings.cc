// The Python face of the core: converts arguments, releases the GIL around I/O and long work, and turns the core's
// errors into serverless_triton.loader.errors. It decides nothing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/prctl.h>

#include <stdexcept>
#include <string>

#include "arena_bindings.h"
#include "bf16_bindings.h"
#include "errors.h"
#include "file_image.h"
#include "gpu_bindings.h"
#include "index_reader.h"
#include "mapping.h"
#include "reader_bindings.h"
#include "safetensors.h"
#include "xxh3.h"

namespace py = pybind11;
namespace st = serverless_triton::loader;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

namespace {

void raise_as(const char* name, const std::exception& error) {
    const py::object type = py::module_::import("serverless_triton.loader.errors").attr(name);
    PyErr_SetString(type.ptr(), error.what());
}

void translate(std::exception_ptr failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const st::NotSafetensors& error) {
        raise_as("NotSafetensors", error);
    } catch (const st::CheckpointTruncated& error) {
        raise_as("CheckpointTruncated", error);
    } catch (const st::CheckpointCorrupted& error) {
        raise_as("CheckpointCorrupted", error);
    } catch (const st::CheckpointNotFound& error) {
        raise_as("CheckpointNotFound", error);
    } catch (const st::CheckpointUnreadable& error) {
        raise_as("CheckpointUnreadable", error);
    } catch (const st::ReadCancelled& error) {
        raise_as("StoreCancelled", error);
    } catch (const st::OutOfMemory& error) {
        raise_as("StoreFull", error);
    } catch (const st::EngineUnavailable& error) {
        raise_as("EngineUnavailable", error);
    } catch (const st::PagesUnavailable& error) {
        raise_as("PagesUnavailable", error);
    } catch (const st::DeviceUnavailable& error) {
        raise_as("DeviceUnavailable", error);
    } catch (const st::DeviceOutOfMemory& error) {
        raise_as("DeviceOutOfMemory", error);
    } catch (const st::DeviceError& error) {
        raise_as("DeviceError", error);
    }
}

py::buffer_info buffer_of(const st::Mapping& mapping) {
    const auto bytes = static_cast<py::ssize_t>(mapping.bytes());
    return {mapping.data(), 1, "B", 1, {bytes}, {py::ssize_t{1}}, false};
}

std::span<const std::byte> bytes_of(const py::buffer_info& info) {
    if (info.itemsize != 1 || info.ndim != 1)
        throw py::type_error("expected a one-dimensional buffer of bytes");
    return {static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size)};
}

// `offset`: where the file begins in `memory`.
st::HeaderIndex parse_index(const py::buffer& memory, std::size_t offset, std::uint64_t file_bytes,
                            const std::string& file_name) {
    const py::buffer_info info = memory.request();
    const std::span<const std::byte> bytes = bytes_of(info);
    if (offset > bytes.size())
        throw py::value_error("offset lies past the end of the memory");
    const py::gil_scoped_release release;
    return st::parse_header(bytes.subspan(offset), file_bytes, file_name);
}

std::string xxh3_128(const py::buffer& data) {
    const py::buffer_info info = data.request();
    const py::gil_scoped_release release;
    return st::to_hex(st::xxh3_128(bytes_of(info)));
}

py::tuple shape_of(const st::TensorEntry& tensor) {
    return py::tuple(py::cast(tensor.shape));
}

void die_with_parent(int signal_number) {
    if (::prctl(PR_SET_PDEATHSIG, signal_number) != 0)
        throw std::runtime_error("prctl(PR_SET_PDEATHSIG) failed");
}

void bind_index(py::module_& m) {
    py::class_<st::TensorEntry>(m, "TensorEntry")
        .def_readonly("name", &st::TensorEntry::name)
        .def_readonly("dtype", &st::TensorEntry::dtype)
        .def_property_readonly("shape", &shape_of)
        .def_readonly("begin", &st::TensorEntry::begin)
        .def_readonly("end", &st::TensorEntry::end);
    py::class_<st::HeaderIndex>(m, "HeaderIndex")
        .def_readonly("data_begin", &st::HeaderIndex::data_begin)
        .def_readonly("tensors", &st::HeaderIndex::tensors);
    m.def("parse_index", &parse_index, py::arg("memory"), py::arg("offset"), py::arg("file_bytes"),
          py::arg("file_name"));
    m.def("read_index", &st::read_index, py::arg("file"), ReleaseGil());
}

void bind_files(py::module_& m) {
    py::class_<st::FileImage>(m, "FileImage")
        .def(py::init(&st::FileImage::open), py::arg("path"), ReleaseGil())
        .def_property_readonly("path", &st::FileImage::path)
        .def_property_readonly("bytes", &st::FileImage::bytes)
        .def_property_readonly("inode", &st::FileImage::inode)
        .def_property_readonly("mtime_ns", &st::FileImage::mtime_ns)
        .def_property_readonly("supports_direct", &st::FileImage::supports_direct)
        .def("fileno", &st::FileImage::fd)
        .def("is_unchanged", &st::FileImage::is_unchanged)
        .def(
            "is_resident", [](const st::FileImage& file) { return file.is_resident(0, file.bytes()); }, ReleaseGil())
        .def("is_resident", &st::FileImage::is_resident, py::arg("offset"), py::arg("length"), ReleaseGil());
}

void bind_memory(py::module_& m) {
    py::class_<st::Mapping>(m, "Mapping", py::buffer_protocol())
        .def_static("anonymous", &st::Mapping::anonymous, py::arg("size_bytes"), ReleaseGil())
        .def_static("copy_on_write", &st::Mapping::copy_on_write, py::arg("fd"), py::arg("size_bytes"), ReleaseGil())
        .def_property_readonly("bytes", &st::Mapping::bytes)
        .def_buffer(&buffer_of);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The load path: checked safetensors headers, direct reads, the arena.";
    m.attr("ALIGNMENT_BYTES") = st::kAlignmentBytes;
    py::register_local_exception_translator(&translate);
    bind_index(m);
    bind_files(m);
    bind_memory(m);
    st::bind_arena(m);
    st::bind_bf16(m);
    st::bind_reader(m);
    st::bind_gpu(m);
    m.def("xxh3_128", &xxh3_128, py::arg("data"));
    m.def("die_with_parent", &die_with_parent, py::arg("signal_number"));
}
