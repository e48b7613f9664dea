// Tests of what uses a GPU: each case in a process of its own, since a process opens the driver once, with the
// environment that the emulated driver should see. Where the environment names a driver, that one is used, and the
// cases that need something of the emulated one are left out.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "check.h"

using Environment = std::map<std::string, std::string>;

inline bool is_emulated() {
    const char* driver = std::getenv("SERVERLESS_TRITON_CUDA_DRIVER");
    return driver == nullptr || std::string(driver) == EMULATED_CUDA_DRIVER;
}

template <typename Case>
void run_case(const char* name, const Environment& environment, const Case& body) {
    if (!environment.empty() && !is_emulated()) {
        std::fprintf(stderr, "%s: left out on a real driver\n", name);
        return;
    }
    const pid_t child = ::fork();
    if (child == 0) {
        ::setenv("SERVERLESS_TRITON_CUDA_DRIVER", EMULATED_CUDA_DRIVER, 0);
        for (const auto& [key, value] : environment)
            ::setenv(key.c_str(), value.c_str(), 1);
        body();
        std::exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    check_that(status == 0, name, __FILE__, __LINE__);
}
