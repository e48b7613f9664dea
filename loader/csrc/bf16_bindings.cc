// Memory comes as addresses, since bfloat16 has no Python buffer: whoever calls owns it and keeps it for the call, and
// for weights as long as their product lives (backend/engines/torch/products.py does).
#include "bf16_bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

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
};

Bf16Product make_product(std::uintptr_t weight, std::uintptr_t bias, std::size_t outputs, std::size_t inputs,
                         unsigned threads) {
    const Bf16Product product{{at_address<const Bf16>(weight), at_address<const Bf16>(bias), outputs, inputs}, threads};
    multiply(product.weights, nullptr, 0, inputs, nullptr, threads);  // says now what is wrong with them
    return product;
}

// `threads` are the first one's.
void compute_together(const std::vector<const Bf16Product*>& products, std::uintptr_t input, std::size_t rows,
                      std::size_t row_stride, const std::vector<std::uintptr_t>& outputs) {
    if (products.empty() || products.size() != outputs.size())
        throw py::value_error("as many results as products are computed together, and at least one");
    std::vector<Bf16Factor> factors;
    for (std::size_t i = 0; i < products.size(); ++i) {
        if (products[i] == nullptr)
            throw py::value_error("None is no product");
        factors.push_back({products[i]->weights, at_address<Bf16>(outputs[i])});
    }
    const auto* const from = at_address<const Bf16>(input);
    const unsigned threads = products.front()->threads;
    const py::gil_scoped_release release;
    multiply_together(factors, from, rows, row_stride, threads);
}

}  // namespace

void bind_bf16(py::module_& m) {
    m.def("has_bf16_products", &has_bf16_products);
    py::class_<Bf16Product>(m, "Bf16Product")
        .def(py::init(&make_product), py::kw_only(), py::arg("weight"), py::arg("bias"), py::arg("outputs"),
             py::arg("inputs"), py::arg("threads"))
        .def_static("compute_together", &compute_together, py::arg("products"), py::arg("activations"), py::arg("rows"),
                    py::arg("row_stride"), py::arg("results"));
}

}  // namespace serverless_triton::loader
