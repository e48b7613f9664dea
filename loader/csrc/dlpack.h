// Memory handed to other libraries of this process without a copy: the layouts of DLPack's stable C interface
// (https://dmlc.github.io/dlpack, DLManagedTensor), declared here so that nothing else is needed.
#pragma once

#include <cstdint>

namespace serverless_triton::loader::dlpack {

inline constexpr std::int32_t kCpu = 1;
inline constexpr std::int32_t kCuda = 2;
inline constexpr std::uint8_t kUnsigned = 1;

struct Device {
    std::int32_t type = kCpu;
    std::int32_t id = 0;
};

struct DataType {
    std::uint8_t code = kUnsigned;
    std::uint8_t bits = 8;
    std::uint16_t lanes = 1;
};

struct Tensor {
    void* data = nullptr;
    Device device;
    std::int32_t dimensions = 0;
    DataType dtype;
    std::int64_t* shape = nullptr;
    std::int64_t* strides = nullptr;  // null: contiguous
    std::uint64_t byte_offset = 0;
};

// Whoever takes it calls the deleter once, on any thread.
struct ManagedTensor {
    Tensor tensor;
    void* context = nullptr;
    void (*deleter)(ManagedTensor*) = nullptr;
};

static_assert(sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 64);

}  // namespace serverless_triton::loader::dlpack
