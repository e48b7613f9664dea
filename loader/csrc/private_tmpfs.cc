#include "private_tmpfs.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "errors.h"

// Numbers of the kernel's interface, equal on all its architectures of today; older headers lack them.
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

namespace serverless_triton::loader {
namespace {

constexpr unsigned kOpenCloseOnExec = 1;
constexpr unsigned kConfigSetString = 1;
constexpr unsigned kConfigCreate = 6;
constexpr std::uint64_t kReadOnly = 1;
constexpr std::uint64_t kNoSetuid = 2;
constexpr std::uint64_t kNoDevices = 4;
constexpr std::uint64_t kNoExecution = 8;
constexpr unsigned kMoveFromDescriptor = 4;
constexpr unsigned kTreeClone = 1;
constexpr unsigned kEmptyPath = 0x1000;
constexpr const char* kFileName = "serverless-triton-arena";

// struct mount_attr of <linux/mount.h>.
struct MountAttributes {
    std::uint64_t set = 0;
    std::uint64_t clear = 0;
    std::uint64_t propagation = 0;
    std::uint64_t user_namespace = 0;
};

long checked(const char* action, long result) {
    if (result < 0)
        throw PagesUnavailable(std::string("no private tmpfs of 2 MiB pages: ") + action + ": " + std::strerror(errno));
    return result;
}

UniqueFd checked_fd(const char* action, long result) {
    return UniqueFd(static_cast<int>(checked(action, result)));
}

UniqueFd mount_detached(std::uint64_t bytes) {
    const UniqueFd context = checked_fd("fsopen", ::syscall(SYS_fsopen, "tmpfs", kOpenCloseOnExec));
    const auto set = [&](const char* key, const std::string& value) {
        checked(key, ::syscall(SYS_fsconfig, context.get(), kConfigSetString, key, value.c_str(), 0));
    };
    set("huge", "always");
    set("size", std::to_string(bytes));
    set("mode", "0700");
    checked("fsconfig", ::syscall(SYS_fsconfig, context.get(), kConfigCreate, nullptr, nullptr, 0));
    const std::uint64_t attributes = kNoSetuid | kNoDevices | kNoExecution;
    return checked_fd("fsmount", ::syscall(SYS_fsmount, context.get(), kOpenCloseOnExec, attributes));
}

// Before Linux 6.15 only a mount that is attached somewhere can be cloned. This thread's namespace is such a place: it
// is nobody else's and ends with the thread.
UniqueFd clone_read_only(const UniqueFd& tree) {
    checked("unshare", ::unshare(CLONE_NEWNS));
    checked("mount", ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr));
    checked("move_mount", ::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, "/", kMoveFromDescriptor));
    UniqueFd clone =
        checked_fd("open_tree", ::syscall(SYS_open_tree, tree.get(), "", kTreeClone | O_CLOEXEC | kEmptyPath));
    const MountAttributes attributes{.set = kReadOnly};
    checked("mount_setattr", ::syscall(SYS_mount_setattr, clone.get(), "", kEmptyPath, &attributes, sizeof attributes));
    return clone;
}

PrivateFile create_in_this_thread(std::uint64_t bytes) {
    const UniqueFd tree = mount_detached(bytes);
    constexpr int kCreate = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
    PrivateFile file;
    file.writable = checked_fd("openat", ::openat(tree.get(), kFileName, kCreate, 0600));
    checked("ftruncate", ::ftruncate(file.writable.get(), static_cast<off_t>(bytes)));
    const UniqueFd clone = clone_read_only(tree);
    file.read_only = checked_fd("openat", ::openat(clone.get(), kFileName, O_RDONLY | O_CLOEXEC));
    return file;
}

}  // namespace

PrivateFile create_private_file(std::uint64_t bytes) {
    PrivateFile file;
    std::exception_ptr failure;
    std::thread([&]() noexcept {
        try {
            file = create_in_this_thread(bytes);
        } catch (...) {
            failure = std::current_exception();
        }
    }).join();
    if (failure)
        std::rethrow_exception(failure);
    return file;
}

}  // namespace serverless_triton::loader
