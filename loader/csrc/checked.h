// Arithmetic on sizes and offsets that a file chose. Pure; callable from any thread.
#pragma once

#include <cstdint>
#include <optional>

namespace serverless_triton::loader {

[[nodiscard]] inline std::optional<std::uint64_t> checked_add(std::uint64_t left, std::uint64_t right) {
    std::uint64_t sum = 0;
    if (__builtin_add_overflow(left, right, &sum))
        return std::nullopt;
    return sum;
}

[[nodiscard]] inline std::optional<std::uint64_t> checked_multiply(std::uint64_t left, std::uint64_t right) {
    std::uint64_t product = 0;
    if (__builtin_mul_overflow(left, right, &product))
        return std::nullopt;
    return product;
}

// The next multiple of `unit` (a power of two) that is not below `value`.
[[nodiscard]] inline std::optional<std::uint64_t> checked_round_up(std::uint64_t value, std::uint64_t unit) {
    const auto padded = checked_add(value, unit - 1);
    if (!padded)
        return std::nullopt;
    return *padded & ~(unit - 1);
}

}  // namespace serverless_triton::loader
