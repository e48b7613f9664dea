#include "bf16_product.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "thread_team.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SERVERLESS_TRITON_BF16 1
// The header of g++ 12 makes a value it does not use by initializing it with itself, and warns of that (PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace serverless_triton::loader {
namespace {

void check_extent(std::size_t rows, std::size_t row_elements) {
    constexpr std::size_t kMost = std::numeric_limits<std::ptrdiff_t>::max() / sizeof(Bf16);
    if (row_elements != 0 && rows > kMost / row_elements)
        throw std::invalid_argument("a matrix of " + std::to_string(rows) + " rows of " + std::to_string(row_elements) +
                                    " elements is larger than any memory");
}

void check(const Bf16Weights& weights, const Bf16* input, std::size_t rows, std::size_t row_stride, const Bf16* output,
           unsigned threads) {
    if (weights.weight == nullptr || weights.inputs == 0 || weights.outputs == 0)
        throw std::invalid_argument("a product needs weights of at least one output and one input");
    if (threads == 0)
        throw std::invalid_argument("a product needs at least one thread");
    if (rows > 0 && (input == nullptr || output == nullptr))
        throw std::invalid_argument("a product of rows needs memory to read and to write");
    if (rows > 1 && row_stride < weights.inputs)
        throw std::invalid_argument("rows of " + std::to_string(weights.inputs) + " elements lie only " +
                                    std::to_string(row_stride) + " apart");
    check_extent(weights.outputs, weights.inputs);
    check_extent(rows, row_stride);
    check_extent(rows, weights.outputs);
}

#ifdef SERVERLESS_TRITON_BF16

#define BF16_CODE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define BF16_INLINE BF16_CODE __attribute__((always_inline)) inline

constexpr std::size_t kStep = 32;            // elements of a register
constexpr std::size_t kTile = 16;            // outputs of a tile, in as many registers
constexpr std::size_t kTaskOutputs = 64;     // of all rows: what a thread takes at once
constexpr std::size_t kBlockRows = 32;       // whose activations stay in the nearest cache
constexpr std::size_t kAloneSteps = 16'384;  // sums of so many registers are done before a helper is awake

struct Product {
    Bf16Weights weights;
    const Bf16* input;
    std::size_t rows, row_stride;
    Bf16* output;
    std::size_t first_task, task_outputs;
};

using Products = std::vector<Product>;

// Sums each of 16 registers, all in the same order: lane i of the result is that of register i.
BF16_INLINE __m512 sums_of(const __m512 (&registers)[kTile]) {
    __m512 fours[4];
    for (int i = 0; i < 4; ++i) {
        const __m512* const r = registers + 4 * i;
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    __m512 halves[2];
    for (int i = 0; i < 2; ++i)
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                         _mm512_shuffle_f32x4(halves[0], halves[1], 0xDD));
}

BF16_INLINE __m512bh load(const Bf16* from, __mmask32 mask) {
    return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, from));
}

// Rows × outputs of one tile, summed over all inputs. Every tile adds up in the same order, whatever its shape.
template <std::size_t Rows>
BF16_INLINE __m512 tile_sums(const Bf16* const (&x)[Rows], const Bf16* const (&w)[kTile / Rows], std::size_t inputs) {
    constexpr std::size_t kOutputs = kTile / Rows;
    __m512 sums[kTile];
    for (__m512& sum : sums)
        sum = _mm512_setzero_ps();
    const auto add = [&](std::size_t at, __mmask32 mask) BF16_CODE __attribute__((always_inline)) {
        __m512bh row[Rows];
        for (std::size_t m = 0; m < Rows; ++m)
            row[m] = load(x[m] + at, mask);
        for (std::size_t n = 0; n < kOutputs; ++n) {
            const __m512bh column = load(w[n] + at, mask);
            for (std::size_t m = 0; m < Rows; ++m)
                sums[m * kOutputs + n] = _mm512_dpbf16_ps(sums[m * kOutputs + n], row[m], column);
        }
    };
    std::size_t at = 0;
    for (; at + kStep <= inputs; at += kStep)
        add(at, ~__mmask32{0});
    if (at < inputs)
        add(at, static_cast<__mmask32>((1ULL << (inputs - at)) - 1));
    return sums_of(sums);
}

// Rows from `row` and outputs from `first` of the product, to before the ends; what lies past an end repeats its last.
template <std::size_t Rows>
BF16_INLINE void write_tile(const Product& p, std::size_t row, std::size_t end_row, std::size_t first,
                            std::size_t end) {
    constexpr std::size_t kOutputs = kTile / Rows;
    const Bf16* x[Rows];
    const Bf16* w[kOutputs];
    for (std::size_t m = 0; m < Rows; ++m)
        x[m] = p.input + std::min(row + m, end_row - 1) * p.row_stride;
    for (std::size_t n = 0; n < kOutputs; ++n)
        w[n] = p.weights.weight + std::min(first + n, end - 1) * p.weights.inputs;
    __m512 sums = tile_sums<Rows>(x, w, p.weights.inputs);
    const std::size_t count = std::min(kOutputs, end - first);
    if (p.weights.bias != nullptr) {
        alignas(64) float bias[kTile] = {};
        for (std::size_t i = 0; i < kTile; ++i)
            bias[i] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(
                i % kOutputs < count ? static_cast<int>(p.weights.bias[first + i % kOutputs]) << 16 : 0)));
        sums = _mm512_add_ps(sums, _mm512_load_ps(bias));
    }
    alignas(32) Bf16 rounded[kTile];
    _mm256_store_si256(reinterpret_cast<__m256i*>(rounded), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sums)));
    for (std::size_t m = 0; m < std::min(Rows, end_row - row); ++m)
        std::copy_n(rounded + m * kOutputs, count, p.output + (row + m) * p.weights.outputs + first);
}

template <std::size_t Rows>
BF16_CODE void write_rows(const Product& p, std::size_t row, std::size_t end_row, std::size_t first, std::size_t end) {
    constexpr std::size_t kOutputs = kTile / Rows;
    for (std::size_t at = first; at < end; at += kOutputs)
        for (std::size_t m = row; m < end_row; m += Rows)
            write_tile<Rows>(p, m, end_row, at, end);
}

void do_task(const void* context, std::size_t index) noexcept {
    const auto& products = *static_cast<const Products*>(context);
    std::size_t number = products.size() - 1;
    while (products[number].first_task > index)
        --number;
    const Product& p = products[number];
    const std::size_t first = (index - p.first_task) * p.task_outputs,
                      end = std::min(first + p.task_outputs, p.weights.outputs);
    for (std::size_t row = 0; row < p.rows; row += kBlockRows) {
        const std::size_t end_row = std::min(row + kBlockRows, p.rows);
        if (end_row - row == 1)
            write_rows<1>(p, row, end_row, first, end);
        else if (end_row - row == 2)
            write_rows<2>(p, row, end_row, first, end);
        else
            write_rows<4>(p, row, end_row, first, end);
    }
}

void compute(Products& products, unsigned threads) {
    std::size_t steps = 0, tasks = 0;
    for (const Product& p : products)
        steps += p.rows * p.weights.outputs * (p.weights.inputs / kStep + 1);
    const bool is_alone = threads == 1 || steps < kAloneSteps;
    for (Product& p : products) {
        p.first_task = tasks;
        p.task_outputs = is_alone ? p.weights.outputs : kTaskOutputs;
        tasks += (p.weights.outputs + p.task_outputs - 1) / p.task_outputs;
    }
    share_with_team(is_alone ? 1 : threads, tasks, &do_task, &products);
}

#endif

}  // namespace

bool has_bf16_products() noexcept {
#ifdef SERVERLESS_TRITON_BF16
    static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512bf16");
    return has;
#else
    return false;
#endif
}

void multiply(const Bf16Weights& weights, const Bf16* input, std::size_t rows, std::size_t row_stride, Bf16* output,
              unsigned threads) {
    const Bf16Factor only{weights, output};
    multiply_together({&only, 1}, input, rows, row_stride, threads);
}

void multiply_together(std::span<const Bf16Factor> factors, const Bf16* input, std::size_t rows, std::size_t row_stride,
                       unsigned threads) {
    for (const Bf16Factor& one : factors)
        check(one.weights, input, rows, row_stride, one.output, threads);
    if (!has_bf16_products())
        throw std::runtime_error("this processor has no AVX512-BF16");
    if (rows == 0 || factors.empty())
        return;
#ifdef SERVERLESS_TRITON_BF16
    Products products;
    products.reserve(factors.size());
    for (const Bf16Factor& one : factors)
        products.push_back({one.weights, input, rows, row_stride, one.output, 0, 0});
    compute(products, threads);
#endif
}

}  // namespace serverless_triton::loader
