// XXH3-128, seed 0, of memory that is all there (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
// Detects corruption; it is no defence against somebody who chose the bytes. Pure: callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace serverless_triton::loader {

struct Digest {
    std::uint64_t high = 0;
    std::uint64_t low = 0;

    friend bool operator==(const Digest&, const Digest&) = default;
};

// kPortable leaves out what this processor could do better; the digest is the same.
enum class Instructions { kBest, kPortable };

[[nodiscard]] Digest xxh3_128(std::span<const std::byte> bytes, Instructions instructions = Instructions::kBest);

// The canonical form: 32 lower-case hexadecimal digits, the most significant first.
[[nodiscard]] std::string to_hex(const Digest& digest);
// Nothing where `text` is not in that form.
[[nodiscard]] std::optional<Digest> from_hex(std::string_view text);

}  // namespace serverless_triton::loader
