// Fuzz target of the header parser, with libFuzzer's entry point; fuzz_driver.cc runs it where there is no libFuzzer.
// Whatever the bytes are, the parser accepts or refuses them; of what it accepts, the promises of safetensors.h hold.
#include <cstddef>
#include <cstdint>
#include <span>

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        check_promises(parse_header(std::as_bytes(std::span(data, size)), size, "fuzzed.safetensors"), size);
    } catch (const NotSafetensors&) {
    } catch (const CheckpointTruncated&) {
    }
    return 0;
}
