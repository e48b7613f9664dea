#include "bf16_product.h"

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

float to_float(Bf16 value) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

Bf16 to_bf16(float value) {
    return static_cast<Bf16>(std::bit_cast<std::uint32_t>(value) >> 16);
}

// Vectors of exactly the length let the address sanitizer see what is read or written past an end.
std::vector<Bf16> random_values(std::size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<Bf16> values(count);
    for (Bf16& value : values)
        value = to_bf16(normal(random));
    return values;
}

std::vector<Bf16> product(const Bf16Weights& weights, const std::vector<Bf16>& input, std::size_t rows,
                          unsigned threads) {
    std::vector<Bf16> output(rows * weights.outputs);
    multiply(weights, input.data(), rows, weights.inputs, output.data(), threads);
    return output;
}

// Within what rounding the result once, and float sums of so many terms, may differ by.
void check_near_float64(const Bf16Weights& w, const std::vector<Bf16>& input, const std::vector<Bf16>& output) {
    for (std::size_t row = 0; row < output.size() / w.outputs; ++row)
        for (std::size_t n = 0; n < w.outputs; ++n) {
            double sum = w.bias == nullptr ? 0.0 : to_float(w.bias[n]), size = std::abs(sum);
            for (std::size_t k = 0; k < w.inputs; ++k) {
                const double term = double{to_float(input[row * w.inputs + k])} * to_float(w.weight[n * w.inputs + k]);
                sum += term;
                size += std::abs(term);
            }
            const double off = std::abs(to_float(output[row * w.outputs + n]) - sum);
            CHECK(off <= std::abs(sum) / 256 + size * 1e-5);
        }
}

void it_is_the_product_of_any_shape() {
    for (const std::size_t inputs : {1UL, 31UL, 32UL, 33UL, 96UL, 577UL})
        for (const std::size_t outputs : {1UL, 3UL, 16UL, 17UL, 64UL, 130UL})
            for (const std::size_t rows : {1UL, 2UL, 3UL, 4UL, 5UL, 17UL, 33UL}) {
                const auto weight = random_values(outputs * inputs, 1), bias = random_values(outputs, 2);
                const auto input = random_values(rows * inputs, 3);
                const Bf16Weights w{weight.data(), rows % 2 == 0 ? nullptr : bias.data(), outputs, inputs};
                check_near_float64(w, input, product(w, input, rows, 2));
            }
}

void a_row_is_the_same_to_the_bit_whatever_is_beside_it() {
    constexpr std::size_t kInputs = 577, kOutputs = 333, kRows = 37;
    const auto weight = random_values(kOutputs * kInputs, 4), input = random_values(kRows * kInputs, 5);
    const Bf16Weights w{weight.data(), nullptr, kOutputs, kInputs};
    const auto whole = product(w, input, kRows, 1);
    for (const unsigned threads : {1U, 2U, 3U})
        for (std::size_t first = 0; first < kRows; ++first)
            for (const std::size_t count : {1UL, 2UL, 3UL, 7UL, kRows - first}) {
                if (first + count > kRows)
                    continue;
                const std::vector<Bf16> part(input.data() + first * kInputs, input.data() + (first + count) * kInputs);
                const auto got = product(w, part, count, threads);
                CHECK(
                    std::equal(got.begin(), got.end(), whole.begin() + static_cast<std::ptrdiff_t>(first * kOutputs)));
            }
}

void several_at_once_are_each_what_it_is_alone() {
    for (const std::size_t rows : {1UL, 16UL, 70UL})
        for (const unsigned threads : {1U, 2U}) {
            const auto input = random_values(rows * 577, 11);
            std::vector<std::vector<Bf16>> weights, outputs;
            std::vector<Bf16Factor> factors;
            for (const std::size_t count : {130UL, 1UL, 64UL, 333UL}) {
                weights.push_back(random_values(count * 577, static_cast<unsigned>(count)));
                outputs.emplace_back(rows * count);
                factors.push_back({{weights.back().data(), nullptr, count, 577}, outputs.back().data()});
            }
            multiply_together(factors, input.data(), rows, 577, threads);
            for (std::size_t i = 0; i < factors.size(); ++i)
                CHECK(outputs[i] == product(factors[i].weights, input, rows, 1));
        }
    multiply_together({}, nullptr, 3, 577, 1);
}

void rows_may_lie_apart() {
    constexpr std::size_t kInputs = 40, kOutputs = 20, kRows = 5, kStride = 43;
    const auto weight = random_values(kOutputs * kInputs, 6);
    const auto spread = random_values((kRows - 1) * kStride + kInputs, 7);
    const Bf16Weights w{weight.data(), nullptr, kOutputs, kInputs};
    std::vector<Bf16> close, output(kRows * kOutputs);
    for (std::size_t row = 0; row < kRows; ++row)
        close.insert(close.end(), spread.data() + row * kStride, spread.data() + row * kStride + kInputs);
    multiply(w, spread.data(), kRows, kStride, output.data(), 1);
    CHECK(output == product(w, close, kRows, 1));
}

void nan_stays_in_its_row() {
    const auto weight = random_values(20 * 40, 8);
    auto input = random_values(3 * 40, 9);
    input[40 + 7] = 0x7fc0;
    const auto output = product({weight.data(), nullptr, 20, 40}, input, 3, 1);
    for (std::size_t i = 0; i < output.size(); ++i)
        CHECK(std::isnan(to_float(output[i])) == (i / 20 == 1));
}

void what_no_memory_holds_is_refused() {
    const std::vector<Bf16> some(64);
    std::vector<Bf16> out(64);
    const Bf16Weights good{some.data(), nullptr, 4, 4};
    multiply(good, nullptr, 0, 4, nullptr, 1);
    CHECK_THROWS(std::invalid_argument, multiply({nullptr, nullptr, 4, 4}, some.data(), 1, 4, out.data(), 1));
    CHECK_THROWS(std::invalid_argument, multiply({some.data(), nullptr, 0, 4}, some.data(), 1, 4, out.data(), 1));
    CHECK_THROWS(std::invalid_argument, multiply(good, some.data(), 1, 4, out.data(), 0));
    CHECK_THROWS(std::invalid_argument, multiply(good, nullptr, 1, 4, out.data(), 1));
    CHECK_THROWS(std::invalid_argument, multiply(good, some.data(), 2, 3, out.data(), 1));
    CHECK_THROWS(std::invalid_argument,
                 multiply({some.data(), nullptr, SIZE_MAX / 2, 8}, some.data(), 1, 8, out.data(), 1));
    CHECK_THROWS(std::invalid_argument, multiply(good, some.data(), SIZE_MAX / 4, 8, out.data(), 1));
}

}  // namespace

int main() {
    if (!has_bf16_products()) {
        const std::vector<Bf16> some(16);
        CHECK_THROWS(std::runtime_error, multiply({some.data(), nullptr, 4, 4}, some.data(), 0, 4, nullptr, 1));
        return 0;
    }
    it_is_the_product_of_any_shape();
    a_row_is_the_same_to_the_bit_whatever_is_beside_it();
    several_at_once_are_each_what_it_is_alone();
    rows_may_lie_apart();
    nan_stays_in_its_row();
    what_no_memory_holds_is_refused();
}
