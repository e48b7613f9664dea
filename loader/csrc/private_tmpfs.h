// A file of 2 MiB pages on a tmpfs that is mounted nowhere: no path leads to it, and it ends with its last descriptor.
#pragma once

#include <cstdint>

#include "unique_fd.h"

namespace serverless_triton::loader {

// `read_only` was opened through a read-only mount of the same file system: nobody who holds it, root included, opens
// the file for writing through /proc. A file on a tmpfs cannot be sealed; this is what stands in for it.
struct PrivateFile {
    UniqueFd writable;
    UniqueFd read_only;
};

// `bytes` is a multiple of 2 MiB. Starts and ends a thread of its own, which alone sees the mount. Throws
// PagesUnavailable where the kernel or a lack of privileges forbids it; needs CAP_SYS_ADMIN and Linux 5.12.
[[nodiscard]] PrivateFile create_private_file(std::uint64_t bytes);

}  // namespace serverless_triton::loader
