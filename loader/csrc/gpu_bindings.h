// The part of the Python module that concerns GPUs.
#pragma once

#include <pybind11/pybind11.h>

namespace serverless_triton::loader {

// Adds GpuDevice, DeviceMemory, RegisteredMemory and GpuCopy; Arena, Mapping and ChunkSink must be there already.
void bind_gpu(pybind11::module_& m);

}  // namespace serverless_triton::loader
