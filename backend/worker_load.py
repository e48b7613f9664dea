"""A worker's load: the weights from the store, the engine around them, and where the time went."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.engines.protocol import NO_DIGESTS, Engine, EngineSettings
from serverless_triton.backend.engines.registry import EngineRegistry
from serverless_triton.backend.messages import ModelSpec, Span, WireShare
from serverless_triton.backend.premapped_store import PremappedStore
from serverless_triton.loader.chunk_hashes import digests_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from serverless_triton.loader.attachment import Attachment
    from serverless_triton.loader.client import Store

SHOWN_QUEUE_S = 0.001  # less is the store's own way from question to read


class SpanRecorder:
    """The stretches of one load, on this host's monotonic clock."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spans.append((name, start, time.monotonic()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """A warm engine, and the store's connection that is its weights' lease."""

    engine: Engine
    store: Store
    tier: str
    bytes: int
    spans: list[Span]


def load_engine(
    engines: EngineRegistry, premapped: PremappedStore, spec: ModelSpec, shares: Iterable[WireShare] = ()
) -> LoadedEngine:
    """The store fetches the weights while this thread prepares what needs none.

    Raises EngineError, the loader's errors, and whatever a checkpoint provokes in the engine.
    """
    import torch

    torch.set_num_threads(spec.threads)
    recorder = SpanRecorder()
    builder = engines.builder(spec.engine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        weights: Future[tuple[Store, Attachment]] = pool.submit(_attach, premapped, spec, recorder)
        with recorder.span("worker.skeleton"):
            builder.learn(spec.directory, spec.dtype)
        store, attachment = weights.result()
    receipt = attachment.receipt
    with recorder.span("worker.engine"):
        engine = builder.build(
            spec.directory,
            attachment.tensors,
            settings=EngineSettings(
                dtype=spec.dtype,
                mode=spec.mode,
                max_sequence_tokens=spec.max_sequence_tokens,
                max_streams=spec.max_streams,
                kv_cache_bytes=spec.kv_cache_bytes,
                step_tokens=spec.step_tokens,
                threads=spec.threads,
                shares=tuple(Share.of_wire(share) for share in shares),
                options=spec.options,
            ),
            chunk_digests=digests_of(spec.checkpoint) if receipt.verified else NO_DIGESTS,
        )
    return LoadedEngine(engine=engine, store=store, tier=receipt.tier, bytes=receipt.bytes, spans=recorder.spans)


def _attach(premapped: PremappedStore, spec: ModelSpec, recorder: SpanRecorder) -> tuple[Store, Attachment]:
    with recorder.span("store.load"):
        store = premapped.take()
        asked_s = time.monotonic()
        attachment = store.attach(spec.checkpoint)
    if attachment.receipt.queue_s > SHOWN_QUEUE_S:  # behind other loads of the same device
        recorder.spans.append(("store.queue", asked_s, asked_s + attachment.receipt.queue_s))
    return store, attachment
