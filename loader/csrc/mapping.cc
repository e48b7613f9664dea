#include "mapping.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "errors.h"

namespace serverless_triton::loader {

Mapping::Mapping(int fd, std::uint64_t bytes, int flags) : bytes_(bytes) {
    if (bytes == 0)
        return;
    void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (address == MAP_FAILED)
        throw OutOfMemory("cannot map " + std::to_string(bytes) + " bytes of memory: " + std::strerror(errno) +
                          "; free memory");
    data_ = static_cast<std::byte*>(address);
}

Mapping Mapping::anonymous(std::uint64_t bytes) {
    return {-1, bytes, MAP_PRIVATE | MAP_ANONYMOUS};
}

Mapping Mapping::copy_on_write(int fd, std::uint64_t bytes) {
    return {fd, bytes, MAP_PRIVATE};
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

Mapping::~Mapping() {
    if (data_ != nullptr)
        ::munmap(data_, bytes_);
}

}  // namespace serverless_triton::loader
