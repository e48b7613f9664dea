// How direct reads are made: by io_uring, where this process and the file's mount allow it, or by pread().
// All functions may be called from any thread.
#pragma once

#include <string_view>

#include "file_image.h"

namespace serverless_triton::loader {

enum class Engine { kUring, kPread };

[[nodiscard]] std::string_view name_of(Engine engine);

// `wish` is "auto", "io_uring" or "pread". "auto" takes io_uring where a ring can be made, tried once a process.
// Throws EngineUnavailable for "io_uring" where none can, and std::invalid_argument for any other word.
[[nodiscard]] Engine choose_engine(std::string_view wish);

// Whether io_uring reads this file as pread() does: found out by a real direct read, once for each mount.
[[nodiscard]] bool uring_reads(const FileImage& file);

}  // namespace serverless_triton::loader
