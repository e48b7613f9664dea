// Threads that stay between calls, for work too short to start threads for.
#pragma once

#include <cstddef>

namespace serverless_triton::loader {

// Calls task(context, index) for every index below `tasks`, on up to `threads` threads, the caller's own among them,
// and returns when all are done. A task must not throw, nor share tasks itself.
//
// Any thread may call it; while one call has the helpers, another does its tasks alone. Helpers begin with the first
// call that wants them, and a forked child begins its own: so a process that has called it with one thread only, or not
// at all, forks safely. Helpers sleep between calls and end with the process. One that the kernel wakes too late is not
// waited for.
using Task = void (*)(const void* context, std::size_t index) noexcept;
void share_with_team(unsigned threads, std::size_t tasks, Task task, const void* context);

}  // namespace serverless_triton::loader
