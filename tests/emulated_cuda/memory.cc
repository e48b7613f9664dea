// The emulated driver's memory: allocations, handles, mappings at reserved addresses, and pinned memory of the host.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace emulated_cuda {

// Made and dropped under the lock.
Allocation::Allocation(int file, std::uint64_t size, int home) : fd(file), bytes(size), device(home) {
    machine().used[static_cast<std::size_t>(device)] += bytes;
}

Allocation::~Allocation() {
    ::close(fd);
    machine().used[static_cast<std::size_t>(device)] -= bytes;
}

Reservation* reservation_of(Address begin, std::uint64_t bytes) {
    auto after = machine().reservations.upper_bound(begin);
    if (after == machine().reservations.begin())
        return nullptr;
    auto& [address, reservation] = *--after;
    return begin - address + bytes <= reservation.bytes ? &reservation : nullptr;
}

bool is_pinned(Address begin, std::uint64_t bytes) {
    auto after = machine().pinned.upper_bound(begin);
    if (after == machine().pinned.begin())
        return false;
    const auto& [address, length] = *--after;
    return begin - address + bytes <= length;
}

namespace {

// The layouts of cuda.h, written a second time on purpose: the loader's own must agree with them.
struct Location {
    int type;
    int id;
};
struct Properties {
    int type;
    int requestedHandleTypes;
    Location location;
    void* win32HandleMetaData;
    unsigned char compressionType, gpuDirectRDMACapable;
    unsigned short usage;
    unsigned char reserved[4];
};
struct Access {
    Location location;
    int flags;
};

constexpr std::uint64_t kGranularity = 2 * 1024 * 1024;

bool is_aligned(std::uint64_t value) {
    return value % kGranularity == 0;
}

bool overlaps_pinned(Address begin, std::uint64_t bytes) {
    for (const auto& [address, length] : machine().pinned) {
        if (begin < address + length && address < begin + bytes)
            return true;
    }
    return false;
}

}  // namespace

EXPORTED Result cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    return call("cuMemGetInfo", true, [&] {
        *total = machine().memory_bytes;
        *free = *total - machine().used[static_cast<std::size_t>(current_contexts.back()->device)];
        return kSuccess;
    });
}

EXPORTED Result cuMemGetAllocationGranularity(std::size_t* granularity, const Properties* properties, int) {
    return call("cuMemGetAllocationGranularity", false, [&] {
        *granularity = kGranularity;
        return properties->type == 1 && properties->location.type == 1 ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemCreate(std::uint64_t* handle, std::size_t bytes, const Properties* properties,
                            unsigned long long flags) {
    return call("cuMemCreate", true, [&] {
        const bool valid = properties->type == 1 && properties->requestedHandleTypes == 1 &&
                           properties->location.type == 1 && properties->win32HandleMetaData == nullptr && flags == 0;
        const auto device = static_cast<std::size_t>(properties->location.id);
        if (!valid || bytes == 0 || !is_aligned(bytes) || device >= machine().contexts.size())
            return kInvalidValue;
        if (bytes > machine().memory_bytes - machine().used[device])
            return kOutOfMemory;
        const int fd = ::memfd_create("emulated-gpu", MFD_CLOEXEC);
        if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0)
            return kOutOfMemory;
        *handle = machine().next_handle++;
        machine().handles[*handle] = std::make_shared<Allocation>(fd, bytes, properties->location.id);
        return kSuccess;
    });
}

EXPORTED Result cuMemRelease(std::uint64_t handle) {
    return call("cuMemRelease", false, [&] { return machine().handles.erase(handle) ? kSuccess : kInvalidValue; });
}

EXPORTED Result cuMemAddressReserve(Address* address, std::size_t bytes, std::size_t, Address, unsigned long long) {
    return call("cuMemAddressReserve", false, [&] {
        if (bytes == 0 || !is_aligned(bytes))
            return kInvalidValue;
        void* const memory = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            return kOutOfMemory;
        *address = reinterpret_cast<Address>(memory);
        machine().reservations[*address] = {bytes, nullptr};
        return kSuccess;
    });
}

EXPORTED Result cuMemAddressFree(Address address, std::size_t bytes) {
    return call("cuMemAddressFree", false, [&] {
        const auto found = machine().reservations.find(address);
        if (found == machine().reservations.end() || found->second.bytes != bytes || found->second.mapped)
            return kInvalidValue;
        ::munmap(reinterpret_cast<void*>(address), bytes);
        machine().reservations.erase(found);
        return kSuccess;
    });
}

EXPORTED Result cuMemMap(Address address, std::size_t bytes, std::size_t offset, std::uint64_t handle,
                         unsigned long long) {
    return call("cuMemMap", false, [&] {
        const auto known = machine().handles.find(handle);
        const auto place = machine().reservations.find(address);
        if (known == machine().handles.end() || place == machine().reservations.end() || place->second.mapped)
            return kInvalidValue;
        if (offset != 0 || bytes != known->second->bytes || bytes != place->second.bytes)
            return kInvalidValue;
        void* const wanted = reinterpret_cast<void*>(address);
        if (::mmap(wanted, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, known->second->fd, 0) == MAP_FAILED)
            return kOutOfMemory;
        place->second.mapped = known->second;
        return kSuccess;
    });
}

EXPORTED Result cuMemUnmap(Address address, std::size_t bytes) {
    return call("cuMemUnmap", false, [&] {
        const auto place = machine().reservations.find(address);
        if (place == machine().reservations.end() || !place->second.mapped || place->second.bytes != bytes)
            return kInvalidValue;
        constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        ::mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, kFlags, -1, 0);
        place->second = {bytes, nullptr};
        return kSuccess;
    });
}

EXPORTED Result cuMemSetAccess(Address address, std::size_t bytes, const Access* access, std::size_t count) {
    return call("cuMemSetAccess", false, [&] {
        const auto place = machine().reservations.find(address);
        if (place == machine().reservations.end() || !place->second.mapped || place->second.bytes != bytes)
            return kInvalidValue;
        if (count != 1 || access->location.type != 1 || (access->flags != 1 && access->flags != 3))
            return kInvalidValue;
        if (access->flags == 1 && !machine().has_read_only)
            return kNotSupported;
        place->second.readable = true;
        place->second.writable = access->flags == 3;
        const int protection = place->second.writable ? PROT_READ | PROT_WRITE : PROT_READ;
        return ::mprotect(reinterpret_cast<void*>(address), bytes, protection) == 0 ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemExportToShareableHandle(void* shareable, std::uint64_t handle, int type, unsigned long long) {
    return call("cuMemExportToShareableHandle", false, [&] {
        const auto known = machine().handles.find(handle);
        if (known == machine().handles.end() || type != 1)
            return kInvalidValue;
        const int fd = ::fcntl(known->second->fd, F_DUPFD_CLOEXEC, 0);
        *static_cast<int*>(shareable) = fd;
        return fd >= 0 ? kSuccess : kOutOfMemory;
    });
}

EXPORTED Result cuMemImportFromShareableHandle(std::uint64_t* handle, void* shareable, int type) {
    return call("cuMemImportFromShareableHandle", true, [&] {
        const int fd = ::fcntl(static_cast<int>(reinterpret_cast<std::uintptr_t>(shareable)), F_DUPFD_CLOEXEC, 0);
        struct stat status{};
        if (type != 1 || fd < 0 || ::fstat(fd, &status) != 0)
            return kInvalidValue;
        const auto bytes = static_cast<std::uint64_t>(status.st_size);
        *handle = machine().next_handle++;
        machine().handles[*handle] = std::make_shared<Allocation>(fd, bytes, current_contexts.back()->device);
        return kSuccess;
    });
}

EXPORTED Result cuPointerGetAttribute(void* value, int attribute, Address address) {
    return call("cuPointerGetAttribute", true, [&] {
        *static_cast<unsigned*>(value) = 1;  // CU_MEMORYTYPE_HOST
        return attribute == 2 && reservation_of(address, 1) != nullptr ? kSuccess : kInvalidValue;
    });
}

EXPORTED Result cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned) {
    return call("cuMemHostRegister", true, [&] {
        const auto address = reinterpret_cast<Address>(memory);
        if (bytes == 0 || address % 4096 != 0 || bytes % 4096 != 0)
            return kInvalidValue;
        if (overlaps_pinned(address, bytes))
            return kAlreadyRegistered;
        machine().pinned[address] = bytes;
        return kSuccess;
    });
}

EXPORTED Result cuMemHostUnregister(void* memory) {
    return call("cuMemHostUnregister", true,
                [&] { return machine().pinned.erase(reinterpret_cast<Address>(memory)) ? kSuccess : kNotRegistered; });
}

EXPORTED Result cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
    return call("cuMemHostAlloc", true, [&] {
        *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (*memory == nullptr)
            return kOutOfMemory;
        machine().pinned[reinterpret_cast<Address>(*memory)] = bytes;
        return kSuccess;
    });
}

EXPORTED Result cuMemFreeHost(void* memory) {
    return call("cuMemFreeHost", true, [&] {
        if (machine().pinned.erase(reinterpret_cast<Address>(memory)) == 0)
            return kInvalidValue;
        std::free(memory);
        return kSuccess;
    });
}

}  // namespace emulated_cuda
