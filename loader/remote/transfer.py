"""One load over the network: the headers first, then everything else, many chunks at once, on one event loop.

It begins no chunk while the job is paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .. import _core
from ..checkpoint import CheckpointFile
from ..indices import check_names
from ..safetensors_writer import MAX_HEADER_BYTES
from .cancellation import TICK_S
from .chunk_source import ArenaMemory, ChunkSource
from .chunks import Chunk
from .patience import Patience
from .write_behind import WriteBehind

LENGTH_BYTES = 8


@dataclass(slots=True, kw_only=True)
class TransferReport:
    """Where the bytes came from: the network, or what an earlier load had left in the SSD cache."""

    fetched_bytes: int = 0
    restored_bytes: int = 0


class Transfer:
    """Brings the `chunks`, one list a file, into the arena; `sink` hears of each once its hash was right."""

    def __init__(
        self,
        *,
        files: Sequence[CheckpointFile],
        chunks: Sequence[Sequence[Chunk]],
        source: ChunkSource,
        writer: WriteBehind | None,
        arena: ArenaMemory,
        job: _core.ReadJob,
        patience: Patience,
        concurrency: int,
        sink: _core.ChunkSink | None = None,
    ) -> None:
        self._files = files
        self._chunks = chunks
        self._source = source
        self._writer = writer
        self._sink = sink
        self._arena = arena
        self._job = job
        self._patience = patience
        self._concurrency = concurrency
        self._report = TransferReport()

    async def run(self) -> TransferReport:
        """Raises CheckpointError, RemoteUnavailable."""
        await self._bring(chunks[0] for chunks in self._chunks)
        headers = [self._header_chunks(chunks) for chunks in self._chunks]
        parts = list(zip(headers, self._chunks, strict=True))
        await self._bring(chunk for count, chunks in parts for chunk in chunks[1:count])
        self._check_headers(headers)
        await self._bring(chunk for count, chunks in parts for chunk in chunks[count:])
        return self._report

    def _header_chunks(self, chunks: Sequence[Chunk]) -> int:
        """How many of a file's chunks its header needs.

        The first alone where it is longer than it may be: the parser refuses it without the others.
        """
        length = int.from_bytes(self._bytes_of(chunks[:1])[:LENGTH_BYTES], "little")
        header_end = LENGTH_BYTES + length
        if length > MAX_HEADER_BYTES or header_end > chunks[-1].end:
            return 1
        return next(count for count, chunk in enumerate(chunks, 1) if header_end <= chunk.end)

    def _check_headers(self, counts: Sequence[int]) -> None:
        check_names(
            (file.real_path, _core.parse_index(self._bytes_of(chunks[:count]), 0, file.bytes, file.real_path))
            for file, chunks, count in zip(self._files, self._chunks, counts, strict=True)
        )

    def _bytes_of(self, chunks: Sequence[Chunk]) -> bytes:
        memory = memoryview(self._arena)
        return b"".join(memory[chunk.offset : chunk.offset + chunk.bytes] for chunk in chunks)

    async def _bring(self, chunks: Iterable[Chunk]) -> None:
        todo = iter(chunks)
        workers = [asyncio.ensure_future(self._work(todo)) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, todo: Iterator[Chunk]) -> None:
        for chunk in todo:
            await self._wait_while_paused()
            if self._source.may_restore(chunk) and await asyncio.to_thread(self._source.restore, chunk):
                self._report.restored_bytes += chunk.bytes
            else:
                digest = await self._source.fetch(chunk)
                self._report.fetched_bytes += chunk.bytes
                if self._writer:
                    self._writer.offer(chunk, digest)
            if self._sink:
                await asyncio.to_thread(self._tell, self._sink, chunk)
            self._job.add_done(chunk.bytes)

    def _tell(self, sink: _core.ChunkSink, chunk: Chunk) -> None:
        sink.chunk_ready(chunk.id.file, chunk.begin, self._arena, chunk.offset, chunk.bytes)

    async def _wait_while_paused(self) -> None:
        while self._job.is_paused:
            await asyncio.sleep(TICK_S)
            self._patience.succeeded()  # nobody was asked meanwhile
