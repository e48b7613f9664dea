"""The agent's prefetches, over a real store."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from serverless_triton.backend.prefetches import Prefetches, status_code_of
from serverless_triton.loader import Store
from serverless_triton.loader.errors import CheckpointNotFound, ImageLeased, ImagePinned, StoreFull, StoreUnavailable
from tests.integration.loader.conftest import Daemon

WAIT_S = 20.0
SLOW = ("--ssd-bytes-per-second", str(1 << 20))  # four seconds for a checkpoint


def _states(store: Store) -> list[str]:
    return [image.state for image in store.status().images]


async def _until(condition: Callable[[], bool]) -> None:
    async def hold() -> None:
        while not condition():  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.01)

    await asyncio.wait_for(hold(), WAIT_S)


async def _begun(store: Store, prefetches: Prefetches, checkpoint: Path) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.ensure_future(prefetches.prefetch(str(checkpoint)))
    await _until(lambda: "loading" in _states(store))
    return task


async def test_it_returns_when_the_checkpoint_is_in_dram(daemon: Daemon, store: Store, make_checkpoint):
    changes: list[str] = []
    prefetches = Prefetches(daemon.socket, on_change=lambda: changes.append("changed"))
    there = await asyncio.wait_for(prefetches.prefetch(str(make_checkpoint())), WAIT_S)
    assert _states(store) == ["ready"]
    assert there.bytes >= 4 << 20
    assert changes == ["changed"]


async def test_what_is_there_already_takes_no_time(daemon: Daemon, store: Store, make_checkpoint):
    checkpoint = make_checkpoint()
    store.load(checkpoint)
    there = await asyncio.wait_for(Prefetches(daemon.socket).prefetch(str(checkpoint)), WAIT_S)
    assert there.read_s == 0.0


async def test_a_cancelled_one_stops_the_load(start_daemon: Callable[..., Daemon], make_checkpoint):
    daemon = start_daemon(*SLOW)
    with daemon.connect() as store:
        task = await _begun(store, Prefetches(daemon.socket), make_checkpoint())
        task.cancel()
        await _until(lambda: not _states(store))


async def test_it_goes_on_while_somebody_else_waits(start_daemon: Callable[..., Daemon], make_checkpoint):
    daemon, checkpoint = start_daemon("--ssd-bytes-per-second", str(8 << 20)), make_checkpoint()
    with daemon.connect() as store:
        prefetches = Prefetches(daemon.socket)
        leaving = await _begun(store, prefetches, checkpoint)
        staying = asyncio.ensure_future(prefetches.prefetch(str(checkpoint)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait_for(staying, WAIT_S)
        assert _states(store) == ["ready"]


async def test_one_that_follows_a_cancelled_one_succeeds(start_daemon: Callable[..., Daemon], make_checkpoint):
    daemon, checkpoint = start_daemon("--ssd-bytes-per-second", str(8 << 20)), make_checkpoint()
    with daemon.connect() as store:
        prefetches = Prefetches(daemon.socket)
        first = await _begun(store, prefetches, checkpoint)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.wait_for(prefetches.prefetch(str(checkpoint)), WAIT_S)
        assert _states(store) == ["ready"]


async def test_a_load_that_somebody_else_stops_is_an_error(start_daemon: Callable[..., Daemon], make_checkpoint):
    daemon, checkpoint = start_daemon(*SLOW), make_checkpoint()
    with daemon.connect() as store:
        task = await _begun(store, Prefetches(daemon.socket), checkpoint)
        store.evict(checkpoint)
        with pytest.raises(Exception, match="is not in DRAM") as raised:
            await asyncio.wait_for(task, WAIT_S)
    assert status_code_of(raised.value) == "UNAVAILABLE"  # type: ignore[arg-type]


async def test_what_is_in_use_is_not_evicted(daemon: Daemon, store: Store, make_checkpoint):
    checkpoint, prefetches = make_checkpoint(), Prefetches(daemon.socket)
    attachment = store.attach(checkpoint)
    with pytest.raises(ImageLeased):
        await prefetches.evict(str(checkpoint))
    store.release(attachment)
    await _until(lambda: store.status().images[0].leases == 0)
    assert await prefetches.evict(str(checkpoint)) == 1
    assert _states(store) == []


async def test_what_is_pinned_stays_until_it_is_let_go(daemon: Daemon, store: Store, make_checkpoint):
    checkpoint, prefetches = str(make_checkpoint()), Prefetches(daemon.socket)
    await prefetches.pin(checkpoint, pinned=True)
    await asyncio.wait_for(prefetches.prefetch(checkpoint), WAIT_S)
    with pytest.raises(ImagePinned):
        await prefetches.evict(checkpoint)
    await prefetches.pin(checkpoint, pinned=False)
    assert await prefetches.evict(checkpoint) == 1


async def test_a_checkpoint_that_is_not_there_is_an_error(daemon: Daemon, store: Store, tmp_path: Path):
    with pytest.raises(CheckpointNotFound):
        await Prefetches(daemon.socket).prefetch(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointNotFound("c"), "INVALID_ARGUMENT"),
        (ValueError("v"), "INVALID_ARGUMENT"),
        (ImageLeased("i"), "ABORTED"),
        (ImagePinned("i"), "ABORTED"),
        (StoreFull("s"), "RESOURCE_EXHAUSTED"),
        (StoreUnavailable("s"), "UNAVAILABLE"),
    ],
)
def test_errors_become_statuses(error: ValueError, code: str):
    assert status_code_of(error) == code
