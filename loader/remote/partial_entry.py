"""A cache entry while it is being filled: data files, and a journal of the chunks that are in them.

Nothing of it is served before finish(), and what a killed store left is only used chunk by chunk, each compared with
the hash that the journal has of it. One thread writes; others may read(), confirm() and forget() chunks that the
journal had at the beginning.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

from ..chunk_hashes import CHUNK_BYTES, SUFFIX, ChunkHashes, render_hashes
from .journal import ChunkId, parse_journal, render_lines
from .manifest import Manifest

JOURNAL_NAME = "journal"
MANIFEST_NAME = "manifest.json"
# So much is written between two flushes, of which a crash may cost what came since the last one.
FLUSH_BYTES = 64 * 1024 * 1024


class PartialEntry:
    """The entry at `directory`, continued where it was left. Every method may raise OSError."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        directory.mkdir(mode=0o700, exist_ok=True)
        write_durably(directory / MANIFEST_NAME, manifest.render())
        journal = directory / JOURNAL_NAME
        digests = parse_journal(journal.read_bytes()) if journal.exists() else {}
        self.digests = {chunk: digest for chunk, digest in digests.items() if self._has(chunk)}
        write_durably(journal, render_lines(self.digests.items()))
        self._confirmed: set[ChunkId] = set()
        self._unflushed: list[tuple[ChunkId, str]] = []
        self._unflushed_bytes = 0
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._journal = _opened(stack, journal, os.O_WRONLY | os.O_APPEND)
            self._files = [_opened(stack, directory / file.name, os.O_RDWR | os.O_CREAT) for file in manifest.files]
            self._stack = stack.pop_all()

    def __enter__(self) -> PartialEntry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def is_complete(self) -> bool:
        """Whether every chunk was written, or confirmed to be as it was written, since the entry was opened."""
        return len(self._confirmed) == sum(_chunks_in(file.bytes) for file in self.manifest.files)

    def read(self, chunk: ChunkId) -> bytes:
        """The bytes of a chunk as they are on the disk, whether or not they are what was written."""
        begin, end = self._bounds(chunk)
        return os.pread(self._files[chunk.file], end - begin, begin)

    def confirm(self, chunk: ChunkId) -> None:
        """The chunk is what the journal says."""
        self._confirmed.add(chunk)

    def forget(self, chunk: ChunkId) -> None:
        """The chunk is not what the journal says. Before its new bytes are written."""
        self.digests.pop(chunk, None)

    def write(self, chunk: ChunkId, content: bytes, digest: str) -> None:
        """Takes a whole chunk."""
        begin, end = self._bounds(chunk)
        assert len(content) == end - begin
        view, offset = memoryview(content), begin
        while view:
            written = os.pwrite(self._files[chunk.file], view, offset)
            offset, view = offset + written, view[written:]
        self._unflushed.append((chunk, digest))
        self._unflushed_bytes += end - begin
        if self._unflushed_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """The chunks first, then the lines that say that they are there."""
        for file in {chunk.file for chunk, _ in self._unflushed}:
            os.fdatasync(self._files[file])
            os.posix_fadvise(self._files[file], 0, 0, os.POSIX_FADV_DONTNEED)
        _write_all(self._journal, render_lines(self._unflushed))
        os.fdatasync(self._journal)
        self.digests.update(self._unflushed)
        self._confirmed.update(chunk for chunk, _ in self._unflushed)
        self._unflushed, self._unflushed_bytes = [], 0

    def finish(self) -> None:
        """Makes the directory a complete entry but for its name: hashes beside the files, everything on the disk."""
        assert self.is_complete
        for number, file in enumerate(self.manifest.files):
            os.ftruncate(self._files[number], file.bytes)
            os.fsync(self._files[number])
            digests = tuple(self.digests[ChunkId(number, index)] for index in range(_chunks_in(file.bytes)))
            hashes = render_hashes(ChunkHashes(file_bytes=file.bytes, digests=digests))
            write_durably(self.directory / f"{file.name}{SUFFIX}", hashes)
        sync_directory(self.directory)

    def _has(self, chunk: ChunkId) -> bool:
        files = self.manifest.files
        return chunk.file < len(files) and chunk.number < _chunks_in(files[chunk.file].bytes)

    def _bounds(self, chunk: ChunkId) -> tuple[int, int]:
        begin = chunk.number * CHUNK_BYTES
        return begin, min(begin + CHUNK_BYTES, self.manifest.files[chunk.file].bytes)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_directory(directory: Path) -> None:
    """Makes what was created and renamed in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _chunks_in(size_bytes: int) -> int:
    return -(-size_bytes // CHUNK_BYTES)
