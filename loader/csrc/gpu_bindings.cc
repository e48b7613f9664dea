#include "gpu_bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "chunk_sink.h"
#include "device_memory.h"
#include "dlpack.h"
#include "gpu_copy.h"
#include "gpu_device.h"
#include "mapping.h"
#include "pinned_memory.h"

namespace serverless_triton::loader {
namespace {

namespace py = pybind11;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

constexpr const char* kUnusedCapsule = "dltensor";

// A DLPack tensor of all the bytes; it holds the Python object, and so the memory, until its own end.
struct ByteTensor {
    dlpack::ManagedTensor managed;
    std::int64_t shape[1] = {0};
    py::object owner;

    static void drop(dlpack::ManagedTensor* managed) {
        auto* const self = static_cast<ByteTensor*>(managed->context);
        if (Py_IsInitialized() == 0)
            return;  // torch outlived the interpreter; the process is about to end
        const py::gil_scoped_acquire gil;
        const std::unique_ptr<ByteTensor> dropped(self);
    }
};

// The capsule owns the tensor until somebody takes it, which renames the capsule.
void drop_unused(PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, kUnusedCapsule) == 0)
        return;
    auto* const managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, kUnusedCapsule));
    managed->deleter(managed);
}

py::capsule byte_tensor_of(py::object self) {
    const auto& memory = self.cast<const DeviceMemory&>();
    auto tensor = std::make_unique<ByteTensor>();
    const bool on_host = memory.is_host_memory();
    tensor->shape[0] = static_cast<std::int64_t>(memory.bytes());
    tensor->managed.tensor.data = reinterpret_cast<void*>(memory.address());
    tensor->managed.tensor.device = {on_host ? dlpack::kCpu : dlpack::kCuda, on_host ? 0 : memory.device()->ordinal()};
    tensor->managed.tensor.dimensions = 1;
    tensor->managed.tensor.shape = tensor->shape;
    tensor->managed.context = tensor.get();
    tensor->managed.deleter = &ByteTensor::drop;
    tensor->owner = std::move(self);
    PyObject* const capsule = PyCapsule_New(&tensor->managed, kUnusedCapsule, &drop_unused);
    if (capsule == nullptr)
        throw py::error_already_set();
    tensor.release();
    return py::reinterpret_steal<py::capsule>(capsule);
}

py::bytes read_bytes(const DeviceMemory& memory, std::uint64_t offset, std::uint64_t length) {
    std::string content(length, '\0');
    {
        const py::gil_scoped_release release;
        memory.read(offset, std::as_writable_bytes(std::span(content)));
    }
    return content;
}

// Giving gigabytes back takes the driver a while, in which other threads of Python should go on.
struct DropWithoutGil {
    void operator()(DeviceMemory* dropped) const {
        const std::unique_ptr<DeviceMemory> owned(dropped);
        if (PyGILState_Check() == 0)
            return;
        const py::gil_scoped_release release;
        [[maybe_unused]] const DeviceMemory freed = std::move(*owned);
    }
};

std::shared_ptr<DeviceMemory> shared(DeviceMemory memory) {
    auto owned = std::make_unique<DeviceMemory>(std::move(memory));
    return {owned.release(), DropWithoutGil()};
}

// (offset, length) of each piece of one file in host memory.
using Pieces = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

template <typename Memory>
std::shared_ptr<RegisteredMemory> registered(const Memory& memory) {
    return std::make_shared<RegisteredMemory>(memory.span());
}

template <typename Memory>
void copy_file(GpuCopy& copy, std::size_t file_index, const Memory& memory, const Pieces& pieces, ReadJob& job) {
    const std::span<const std::byte> bytes = memory.span();
    std::vector<std::span<const std::byte>> spans;
    for (const auto& [offset, length] : pieces) {
        if (offset > bytes.size() || length > bytes.size() - offset)
            throw py::value_error("a piece lies past the end of the memory");
        spans.push_back(bytes.subspan(offset, length));
    }
    const py::gil_scoped_release release;
    copy.copy(file_index, spans, job);
}

void bind_devices(py::module_& m) {
    m.def("gpu_uuids", &GpuDevice::uuids, ReleaseGil());
    py::class_<GpuDevice, std::shared_ptr<GpuDevice>>(m, "GpuDevice")
        .def(py::init([](int ordinal) { return std::const_pointer_cast<GpuDevice>(GpuDevice::open(ordinal)); }),
             py::arg("ordinal"), ReleaseGil())
        .def_property_readonly("ordinal", &GpuDevice::ordinal)
        .def_property_readonly("name", &GpuDevice::name)
        .def_property_readonly("total_bytes", &GpuDevice::total_bytes)
        .def_property_readonly("free_bytes", &GpuDevice::free_bytes);
    py::class_<DeviceMemory, std::shared_ptr<DeviceMemory>>(m, "DeviceMemory")
        .def_static(
            "allocate",
            [](const std::shared_ptr<GpuDevice>& device, std::uint64_t bytes) {
                return shared(DeviceMemory::allocate(device, bytes));
            },
            py::arg("device"), py::arg("size_bytes"), ReleaseGil())
        .def_static(
            "from_fd",
            [](const std::shared_ptr<GpuDevice>& device, int fd, std::uint64_t bytes) {
                return shared(DeviceMemory::import(device, fd, bytes));
            },
            py::arg("device"), py::arg("fd"), py::arg("size_bytes"), ReleaseGil())
        .def_property_readonly("bytes", &DeviceMemory::bytes)
        .def("export_fd", [](const DeviceMemory& memory) { return memory.export_fd().release(); })
        .def("read", &read_bytes, py::arg("offset"), py::arg("length"))
        .def("dlpack", &byte_tensor_of);
}

void bind_copies(py::module_& m) {
    py::class_<RegisteredMemory, std::shared_ptr<RegisteredMemory>>(m, "RegisteredMemory")
        .def(py::init(&registered<Arena>), py::arg("memory"), py::keep_alive<1, 2>())
        .def(py::init(&registered<Mapping>), py::arg("memory"), py::keep_alive<1, 2>())
        .def_property_readonly("registered_bytes", &RegisteredMemory::registered_bytes);
    py::class_<GpuCopy, ChunkSink>(m, "GpuCopy")
        .def(py::init([](const std::shared_ptr<DeviceMemory>& target, std::vector<std::uint64_t> offsets,
                         const std::shared_ptr<RegisteredMemory>& registered) {
                 return std::make_unique<GpuCopy>(target, std::move(offsets), registered);
             }),
             py::arg("target"), py::arg("offsets"), py::arg("registered") = nullptr, py::keep_alive<1, 2>(),
             py::keep_alive<1, 4>(), ReleaseGil())
        .def("copy", &copy_file<Arena>, py::arg("file_index"), py::arg("memory"), py::arg("pieces"), py::arg("job"))
        .def("copy", &copy_file<Mapping>, py::arg("file_index"), py::arg("memory"), py::arg("pieces"), py::arg("job"))
        .def("cancel", &GpuCopy::cancel)
        .def("finish", &GpuCopy::finish, ReleaseGil())
        .def_property_readonly("copied_bytes", &GpuCopy::copied_bytes);
}

}  // namespace

void bind_gpu(py::module_& m) {
    bind_devices(m);
    bind_copies(m);
}

}  // namespace serverless_triton::loader
