"""Streams' tokens in the control loop's picture."""

from __future__ import annotations

from serverless_triton.scheduler.admission import StreamId
from serverless_triton.scheduler.status import cluster_status
from tests.unit.scheduler.worlds import World, model, world

A = model("a")
X, Y = StreamId("x"), StreamId("y")


def tokens(w: World) -> int:
    (replica,) = w.loop.cluster.view().replicas
    return replica.tokens


async def test_a_replicas_tokens_are_all_that_its_streams_hold() -> None:
    w = world("s0", models=(A,))
    for stream in (X, Y):
        await w.loop.admit(stream, "a", timeout_s=1.0)
    w.loop.progress(X, input_tokens=10, output_tokens=1)
    w.loop.progress(Y, input_tokens=5, output_tokens=2)
    w.loop.progress(X, input_tokens=10, output_tokens=7)
    assert tokens(w) == 24
    assert cluster_status(w.loop)["servers"][0]["replicas"][0]["tokens"] == 24


async def test_the_tokens_of_a_stream_that_ended_are_gone() -> None:
    w = world("s0", models=(A,))
    first, _ = [await w.loop.admit(stream, "a", timeout_s=1.0) for stream in (X, Y)]
    w.loop.progress(X, input_tokens=10, output_tokens=1)
    w.loop.progress(Y, input_tokens=5, output_tokens=2)
    w.loop.finish(first)
    assert tokens(w) == 7
    w.loop.progress(X, input_tokens=10, output_tokens=2)  # told before it was known to have ended
    assert tokens(w) == 7


async def test_progress_of_a_stream_without_a_place_is_nobodys() -> None:
    w = world("s0", models=(A,))
    await w.loop.admit(X, "a", timeout_s=1.0)
    w.loop.progress(Y, input_tokens=10, output_tokens=1)
    assert tokens(w) == 0
