"""Private memory in 2 MB pages where the kernel gives them: what a plain program would read into, or copy to."""

from __future__ import annotations

import mmap

import numpy as np

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20


def private_memory(size_bytes: int) -> mmap.mmap:
    """Every page comes with its first touch. Python's own default would be shared memory, and so 4 KB pages."""
    whole_bytes = max(1, -(-size_bytes // HUGE_PAGE_BYTES)) * HUGE_PAGE_BYTES
    memory = mmap.mmap(-1, whole_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def touched(memory: mmap.mmap) -> mmap.mmap:
    np.frombuffer(memory, dtype=np.uint8)[::PAGE_BYTES] = 1
    return memory
