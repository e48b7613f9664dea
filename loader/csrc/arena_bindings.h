// The Python face of the arena and of its clients' mappings; part of the module that bindings.cc makes.
#pragma once

#include <pybind11/pybind11.h>

namespace serverless_triton::loader {

void bind_arena(pybind11::module_& m);

}  // namespace serverless_triton::loader
