// Reads and checks the header of an opened file, and nothing of its data. Callable from any thread.
#pragma once

#include "file_image.h"
#include "safetensors.h"

namespace serverless_triton::loader {

// Throws NotSafetensors, CheckpointTruncated or CheckpointUnreadable, all naming the file.
[[nodiscard]] HeaderIndex read_index(const FileImage& file);

}  // namespace serverless_triton::loader
