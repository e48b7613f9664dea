// Memory comes as addresses, since bfloat16 has no Python buffer: whoever calls owns it and keeps it for the call, and
// for weights as long as their product lives (backend/engines/torch/products.py does).
#include "bf16_bindings.h"

#include <cstdint>

#include "bf16_product.h"

namespace py = pybind11;

namespace serverless_triton::loader {
namespace {

template <typename Element>
Element* at_address(std::uintptr_t address) {
    if (address % sizeof(Element) != 0)
        throw py::value_error("memory of bfloat16 begins at an even address");
    return reinterpret_cast<Element*>(address);
}

struct Bf16Product {
    Bf16Weights weights;
    unsigned threads;

    void compute(std::uintptr_t input, std::size_t rows, std::size_t row_stride, std::uintptr_t output) const {
        const auto* const from = at_address<const Bf16>(input);
        auto* const to = at_address<Bf16>(output);
        const py::gil_scoped_release release;
        multiply(weights, from, rows, row_stride, to, threads);
    }
};

Bf16Product make_product(std::uintptr_t weight, std::uintptr_t bias, std::size_t outputs, std::size_t inputs,
                         unsigned threads) {
    const Bf16Product product{{at_address<const Bf16>(weight), at_address<const Bf16>(bias), outputs, inputs}, threads};
    multiply(product.weights, nullptr, 0, inputs, nullptr, threads);  // says now what is wrong with them
    return product;
}

}  // namespace

void bind_bf16(py::module_& m) {
    m.def("has_bf16_products", &has_bf16_products);
    py::class_<Bf16Product>(m, "Bf16Product")
        .def(py::init(&make_product), py::kw_only(), py::arg("weight"), py::arg("bias"), py::arg("outputs"),
             py::arg("inputs"), py::arg("threads"))
        .def("compute", &Bf16Product::compute, py::arg("activations"), py::arg("rows"), py::arg("row_stride"),
             py::arg("results"));
}

}  // namespace serverless_triton::loader
