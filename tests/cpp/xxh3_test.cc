#include "xxh3.h"

#include <vector>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

void both_kernels_agree_at_every_length_and_alignment() {
    const std::string content = pattern(20'000);
    const auto bytes = std::as_bytes(std::span(content));
    for (std::size_t length = 0; length < 3'000; ++length) {
        const auto part = bytes.subspan(length % 64, length);
        CHECK(xxh3_128(part) == xxh3_128(part, Instructions::kPortable));
    }
    CHECK(xxh3_128(bytes) == xxh3_128(bytes, Instructions::kPortable));
}

// A buffer of exactly the length lets the address sanitizer see a read past its end.
void no_byte_past_the_end_is_read() {
    for (const std::size_t length : {1UL, 3UL, 4UL, 8UL, 9UL, 16UL, 17UL, 128UL, 129UL, 240UL, 241UL, 1024UL, 1025UL}) {
        const std::vector<std::byte> exact(length, std::byte{1});
        CHECK(xxh3_128(exact) == xxh3_128(exact, Instructions::kPortable));
    }
}

void digests_survive_their_text() {
    CHECK(to_hex(xxh3_128({})) == "99aa06d3014798d86001c324468d497f");
    CHECK(from_hex("99aa06d3014798d86001c324468d497f") == xxh3_128({}));
    CHECK(!from_hex(""));
    CHECK(!from_hex("99AA06d3014798d86001c324468d497f"));
    CHECK(!from_hex("99aa06d3014798d86001c324468d497f0"));
}

}  // namespace

int main() {
    both_kernels_agree_at_every_length_and_alignment();
    no_byte_past_the_end_is_read();
    digests_survive_their_text();
}
