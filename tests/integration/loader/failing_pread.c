// Preloaded into a process, it lets reads of one file fail: every pread() of FAILING_PATH that touches a byte from
// FAILING_FROM on is EIO. There is no io_uring for the process either, which would pass it by.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int must_fail(int fd, size_t count, off_t offset) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    const char* failing = getenv("FAILING_PATH");
    if (failing == NULL || length < 0)
        return 0;
    path[length] = '\0';
    return strcmp(path, failing) == 0 && offset + (off_t)count > atoll(getenv("FAILING_FROM"));
}

ssize_t pread(int fd, void* buffer, size_t count, off_t offset) {
    static ssize_t (*real)(int, void*, size_t, off_t);
    if (real == NULL)
        real = (ssize_t(*)(int, void*, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    if (must_fail(fd, count, offset)) {
        errno = EIO;
        return -1;
    }
    return real(fd, buffer, count, offset);
}

long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (real == NULL)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == 425) {
        errno = EPERM;
        return -1;
    }
    va_list arguments;
    va_start(arguments, number);
    long a[6];
    for (int i = 0; i < 6; ++i)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
