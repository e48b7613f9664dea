#pragma once

#include <pybind11/pybind11.h>

namespace serverless_triton::loader {

void bind_bf16(pybind11::module_& m);

}  // namespace serverless_triton::loader
