// The typed failures of the core. Each maps to one Python exception of the same meaning (see bindings.cc).
// Every message names the file and says what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace serverless_triton::loader {

struct LoaderError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The bytes are not a valid safetensors file.
struct NotSafetensors : LoaderError {
    using LoaderError::LoaderError;
};

// The file ends before the bytes that its own header promises.
struct CheckpointTruncated : LoaderError {
    using LoaderError::LoaderError;
};

// A chunk's bytes are not those that its hash was taken of.
struct CheckpointCorrupted : LoaderError {
    using LoaderError::LoaderError;
};

struct CheckpointNotFound : LoaderError {
    using LoaderError::LoaderError;
};

// The operating system refused to open or read the file.
struct CheckpointUnreadable : LoaderError {
    using LoaderError::LoaderError;
};

struct ReadCancelled : LoaderError {
    using LoaderError::LoaderError;
};

// Reads were asked for in a way that this machine forbids.
struct EngineUnavailable : LoaderError {
    using LoaderError::LoaderError;
};

// The kernel has no memory left for an image.
struct OutOfMemory : LoaderError {
    using LoaderError::LoaderError;
};

// This machine does not have the kind of pages that an arena should be made of.
struct PagesUnavailable : LoaderError {
    using LoaderError::LoaderError;
};

// A GPU or its driver refused; the message has the driver's own name for it.
struct DeviceError : LoaderError {
    using LoaderError::LoaderError;
};

// There is no CUDA driver, or no such device, or one that cannot do what is needed.
struct DeviceUnavailable : DeviceError {
    using DeviceError::DeviceError;
};

// The GPU has no memory left.
struct DeviceOutOfMemory : DeviceError {
    using DeviceError::DeviceError;
};

}  // namespace serverless_triton::loader
