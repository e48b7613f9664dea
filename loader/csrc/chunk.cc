#include "chunk.h"

namespace serverless_triton::loader {

std::string describe(const Chunk& chunk, Source source) {
    return chunk.file->path() + ": chunk " + std::to_string(chunk.index) + " (bytes " + std::to_string(chunk.offset) +
           " to " + std::to_string(chunk.offset + chunk.length) + "), read from " +
           (source == Source::kSsd ? "ssd" : "page_cache");
}

}  // namespace serverless_triton::loader
