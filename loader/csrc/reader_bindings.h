// The Python face of reading, hashing and verifying files; part of the module that bindings.cc makes.
#pragma once

#include <pybind11/pybind11.h>

namespace serverless_triton::loader {

void bind_reader(pybind11::module_& m);

}  // namespace serverless_triton::loader
