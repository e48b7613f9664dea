#include "read_engine.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "errors.h"
#include "mapping.h"
#include "uring.h"

namespace serverless_triton::loader {
namespace {

bool can_make_rings() {
    static const bool can = Uring::create(1).has_value();
    return can;
}

bool probe(const FileImage& file) {
    auto ring = Uring::create(1);
    if (!ring)
        return false;
    const Mapping block = Mapping::anonymous(kAlignmentBytes);
    const std::int64_t expected = file.read_direct(0, block.span());
    ring->read(file.direct_fd(), 0, block.span(), 0);
    return ring->wait().result == expected && expected >= 0;
}

}  // namespace

std::string_view name_of(Engine engine) {
    return engine == Engine::kUring ? "io_uring" : "pread";
}

Engine choose_engine(std::string_view wish) {
    if (wish == "pread")
        return Engine::kPread;
    if (wish != "auto" && wish != "io_uring")
        throw std::invalid_argument("a reader's engine is auto, io_uring or pread, not " + std::string(wish));
    if (can_make_rings())
        return Engine::kUring;
    if (wish == "io_uring")
        throw EngineUnavailable("this process may not use io_uring (an old kernel, seccomp, or a sysctl); use auto");
    return Engine::kPread;
}

bool uring_reads(const FileImage& file) {
    if (!file.supports_direct() || !can_make_rings())
        return false;
    static std::mutex mutex;
    static std::map<dev_t, bool> known;
    const std::lock_guard lock(mutex);
    const auto [entry, is_new] = known.try_emplace(file.device(), false);
    if (is_new)
        entry->second = probe(file);
    return entry->second;
}

}  // namespace serverless_triton::loader
