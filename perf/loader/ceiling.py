"""What the disk gives to the plainest reader there is: threads that read a file past the page cache into memory which
was touched before. No tensors, no checks; the fastest of a few depths is the ceiling."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from perf.loader.memory import touched

ALIGNMENT_BYTES = 4096


class DirectReader:
    """`content` is memory for all files together, each `aligned`; it is touched first."""

    def __init__(self, *, threads: int, chunk_bytes: int, content: mmap.mmap) -> None:
        self._threads, self._chunk_bytes = threads, chunk_bytes
        self.content = touched(content)

    def read(self, files: tuple[Path, ...]) -> None:
        """Whole files. Raises OSError where the file system refuses O_DIRECT."""
        begin = 0
        for file in files:
            size_bytes = file.stat().st_size
            self._read_file(file, begin, size_bytes)
            begin += aligned(size_bytes)

    def _read_file(self, file: Path, begin: int, size_bytes: int) -> None:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            chunks = iter(range(0, size_bytes, self._chunk_bytes))
            lock, failures = threading.Lock(), list[OSError]()
            arguments = (fd, chunks, lock, begin, size_bytes, failures)
            readers = [threading.Thread(target=self._read_chunks, args=arguments) for _ in range(self._threads)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        finally:
            os.close(fd)
        if failures:
            raise failures[0]

    def _read_chunks(
        self, fd: int, chunks: Iterator[int], lock: threading.Lock, begin: int, size_bytes: int, failures: list[OSError]
    ) -> None:
        try:
            with memoryview(self.content) as view:
                while (offset := _next(chunks, lock)) is not None:
                    end = min(offset + self._chunk_bytes, aligned(size_bytes))
                    while offset < min(end, size_bytes):
                        with view[begin + offset : begin + end] as rest:
                            offset += os.preadv(fd, [rest], offset)
        except OSError as error:
            failures.append(error)


def _next(chunks: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(chunks, None)


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
