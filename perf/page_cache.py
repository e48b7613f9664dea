"""Which of a file's pages the kernel keeps in memory: counted by mincore, filled by reading, emptied and checked.

`empty` drops the caches of the whole machine where it may (root), else only what the kernel lets go of these files.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# A few pages may be read ahead by somebody else meanwhile.
EMPTY_SHARE, FULL_SHARE = 0.002, 0.999
BUFFER_BYTES = 8 << 20
# Others may empty the cache meanwhile.
MAX_FILLS = 3
_libc = ctypes.CDLL(None, use_errno=True)


class WrongResidency(Exception):
    """Files are not in the state that a measurement is about; the message says how far they are."""


def resident_bytes(file: Path) -> int:
    """How much of the file is in the page cache."""
    size_bytes = file.stat().st_size
    if not size_bytes:
        return 0
    flags = np.zeros(-(-size_bytes // mmap.PAGESIZE), dtype=np.uint8)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size_bytes)
        failed = _libc.mincore(address, length, flags.ctypes.data_as(ctypes.c_void_p))
        del view  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
    return int((flags & 1).sum()) * mmap.PAGESIZE


def resident_share(files: Iterable[Path]) -> float:
    files = list(files)
    return sum(map(resident_bytes, files)) / max(1, sum(file.stat().st_size for file in files))


def fill(files: Iterable[Path]) -> None:
    """Reads those that are not there yet. Raises WrongResidency where memory does not hold them all."""
    files = list(files)
    for _ in range(MAX_FILLS):
        if resident_share(files) >= FULL_SHARE:
            return
        for file in files:
            _read(file)
    if (share := resident_share(files)) < FULL_SHARE:
        raise WrongResidency(f"only {share:.1%} of the files stay in the page cache; free some memory")


def _read(file: Path) -> None:
    buffer = bytearray(BUFFER_BYTES)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def evict(files: Iterable[Path]) -> None:
    """Asks the kernel to let go of these files alone; what a process has mapped stays."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # dirty pages would stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def empty(files: Iterable[Path]) -> str:
    """Leaves nothing of the files in memory and returns how. Raises WrongResidency where something stays."""
    files = list(files)
    how = "drop_caches" if _drop_all() else "posix_fadvise (no root: the machine's other caches stay)"
    evict(files)
    if (share := resident_share(files)) > EMPTY_SHARE:
        raise WrongResidency(f"{share:.1%} of the files are still in the page cache; end whoever has them mapped")
    return how


def _drop_all() -> bool:
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True
