// Products of bfloat16 matrices by the processor's own bfloat16 instructions (AVX512-BF16), for rows of activations
// times weights as checkpoints hold them: output = input · weightᵀ + bias.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace serverless_triton::loader {

// The upper half of a float's bits.
using Bf16 = std::uint16_t;

// Weights [outputs, inputs] and bias [outputs] (or null), contiguous, read where they are: nothing is copied or packed.
struct Bf16Weights {
    const Bf16* weight = nullptr;
    const Bf16* bias = nullptr;
    std::size_t outputs = 0;
    std::size_t inputs = 0;
};

// One of several products of the same input: its weights, and where its results go, [rows, outputs], contiguous.
struct Bf16Factor {
    Bf16Weights weights;
    Bf16* output = nullptr;
};

// Whether this processor and this build have what `multiply` needs.
bool has_bf16_products() noexcept;

// `rows` rows of activations, `row_stride` elements apart, to [rows, outputs], contiguous; sums are floats, rounded
// once. An output depends on its row, its weights and its bias alone, to the bit: not on the rows beside it, on how
// many there are, nor on `threads`. Any thread may call it. Throws std::invalid_argument for shapes that no memory can
// have, and std::runtime_error where has_bf16_products() is false.
void multiply(const Bf16Weights& weights, const Bf16* input, std::size_t rows, std::size_t row_stride, Bf16* output,
              unsigned threads);

// The same for several weights at once, in one call of the threads: each output is to the bit what `multiply` gives.
void multiply_together(std::span<const Bf16Factor> factors, const Bf16* input, std::size_t rows, std::size_t row_stride,
                       unsigned threads);

}  // namespace serverless_triton::loader
