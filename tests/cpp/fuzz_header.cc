// Fuzz target of the header parser, with libFuzzer's entry point; fuzz_driver.cc runs it where there is no libFuzzer.
// Whatever the bytes are, the parser accepts or refuses them; of what it accepts, the promises of safetensors.h hold.
#include <algorithm>
#include <bit>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "check.h"
#include "errors.h"
#include "safetensors.h"

using namespace serverless_triton::loader;

namespace {

void check_promises(const HeaderIndex& index, std::uint64_t file_bytes) {
    std::uint64_t end = index.data_begin;
    for (const TensorEntry& tensor : index.tensors) {
        CHECK(tensor.begin == end);
        CHECK(tensor.end >= tensor.begin);
        CHECK(!tensor.dtype.empty());
        end = tensor.end;
    }
    CHECK(end == file_bytes);
}

std::string outcome;

// Few tensors and many differ, and so does what they begin with.
std::string outcome_of(const HeaderIndex& index) {
    const std::string dtype(index.tensors.empty() ? "" : std::string(index.tensors.front().dtype));
    return "accepted " + std::to_string(std::min<std::size_t>(index.tensors.size(), 3)) + " " + dtype;
}

// The rule, which is what a message says before it quotes the input, and about how far into the header it was broken.
std::string outcome_of(std::string_view message) {
    constexpr std::string_view kPlace = " at byte ";
    const auto end = std::ranges::find_if(
        message, [](char c) { return c == '\'' || std::isdigit(static_cast<unsigned char>(c)) != 0; });
    const std::size_t place = message.rfind(kPlace);
    const std::uint64_t byte =
        place == std::string_view::npos
            ? 0
            : std::strtoull(std::string(message.substr(place + kPlace.size())).c_str(), nullptr, 10);
    return std::string(message.begin(), end) + std::to_string(std::bit_width(byte));
}

}  // namespace

extern "C" const char* fuzz_outcome() {
    return outcome.c_str();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const HeaderIndex index = parse_header(std::as_bytes(std::span(data, size)), size, "fuzzed.safetensors");
        check_promises(index, size);
        outcome = outcome_of(index);
    } catch (const NotSafetensors& error) {
        outcome = outcome_of(std::string_view(error.what()));
    } catch (const CheckpointTruncated& error) {
        outcome = outcome_of(std::string_view(error.what()));
    }
    return 0;
}
