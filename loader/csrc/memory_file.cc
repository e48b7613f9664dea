#include "memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "errors.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace serverless_triton::loader {
namespace {

[[noreturn]] void throw_out_of_memory(const char* action, std::uint64_t bytes, int error) {
    throw OutOfMemory("cannot " + std::string(action) + " " + std::to_string(bytes) +
                      " bytes of memory: " + std::strerror(error) + "; free memory or lower the store's DRAM budget");
}

UniqueFd create_memory_file(std::uint64_t bytes) {
    UniqueFd fd(::memfd_create("serverless-triton-image", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
        throw_out_of_memory("reserve", bytes, errno);
    return fd;
}

}  // namespace

Mapping::Mapping(int fd, std::uint64_t bytes, int protection, int flags)
    : bytes_(bytes), is_writable_((protection & PROT_WRITE) != 0) {
    if (bytes == 0)
        return;
    void* address = ::mmap(nullptr, bytes, protection, flags, fd, 0);
    if (address == MAP_FAILED)
        throw_out_of_memory("map", bytes, errno);
    data_ = static_cast<std::byte*>(address);
}

Mapping Mapping::anonymous(std::uint64_t bytes) {
    return {-1, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS};
}

Mapping Mapping::read_only(int fd, std::uint64_t bytes) {
    Mapping mapping(fd, bytes, PROT_READ, MAP_SHARED);
    mapping.fault_in();
    return mapping;
}

Mapping Mapping::copy_on_write(int fd, std::uint64_t bytes) {
    return {fd, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE};
}

Mapping Mapping::writable(int fd, std::uint64_t bytes) {
    return {fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED};
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      is_writable_(other.is_writable_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(is_writable_, other.is_writable_);
    return *this;
}

Mapping::~Mapping() {
    if (data_ != nullptr)
        ::munmap(data_, bytes_);
}

// One read in each window of the kernel's fault-around (64 KB) maps the whole window. MADV_POPULATE_READ takes its
// pages one by one: 20 ms for 270 MB of 4 KB pages where this took 7 ms.
void Mapping::fault_in() const {
    constexpr std::uint64_t kFaultAroundBytes = 64 * 1024;
    const volatile std::byte* bytes = data_;
    for (std::uint64_t at = 0; at < bytes_; at += kFaultAroundBytes)
        static_cast<void>(bytes[at]);
}

MemoryFile::MemoryFile(std::uint64_t bytes)
    : fd_(create_memory_file(bytes)), bytes_(bytes), mapping_(Mapping::writable(fd_.get(), bytes)) {}

std::span<std::byte> MemoryFile::span() const {
    if (!mapping_)
        throw std::logic_error("a sealed memory file cannot be written");
    return mapping_->span();
}

void MemoryFile::seal() {
    mapping_.reset();
    constexpr int kSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (::fcntl(fd_.get(), F_ADD_SEALS, kSeals) != 0)
        throw_out_of_memory("seal", bytes_, errno);
}

}  // namespace serverless_triton::loader
