"""A real daemon whose arena is full, fragmented and fought over, and peers that say whatever they like."""

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file as official_load_file

from serverless_triton.loader import StoreFull
from serverless_triton.loader.link import frame
from tests.integration.loader.test_store import assert_same, eventually

MEGABYTES = 1 << 20
MakeCheckpoint = Callable[..., Path]
StartDaemon = Callable[..., Any]


def paths(store: Any) -> set[str]:
    return {image.path for image in store.status().images}


def test_a_full_arena_is_a_typed_error_and_nothing_is_lost(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint
) -> None:
    leased, cached, wanted = make_checkpoint("leased", 8), make_checkpoint("cached", 4), make_checkpoint("wanted", 10)
    with start_daemon(dram_bytes=16 * MEGABYTES).connect() as store:
        attachment = store.attach(leased)
        store.load(cached)
        for ask in (store.attach, store.load, store.estimate):
            with pytest.raises(StoreFull, match=r"wanted needs \d+ bytes; of \d+ bytes \d+ are leased"):
                ask(wanted)

        assert paths(store) == {str(leased), str(cached)}
        assert store.attach(cached).receipt.tier == "dram"
        assert_same(attachment, leased)
        del attachment
        assert_same(store.attach(wanted), wanted)


def test_images_move_together_for_one_that_needs_contiguous_room(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon(dram_bytes=32 * MEGABYTES)
    small = [make_checkpoint(f"small{i}", 6) for i in range(5)]
    wide = make_checkpoint("wide", 16)
    with daemon.connect() as store:
        for directory in small:
            store.load(directory)
        for directory in small[::2]:
            store.evict(directory)
        assert store.status().arena.fragmentation > 0.3
        attachment = store.attach(wide)

        assert "compacting" in daemon.log.read_text()
        assert not attachment.receipt.scattered
        assert_same(attachment, wide)
        for directory in small[1::2]:
            assert_same(moved := store.attach(directory), directory)
            assert moved.receipt.tier == "dram"


def test_what_cannot_lie_in_one_piece_is_scattered_and_reads_as_one(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint
) -> None:
    small = [make_checkpoint(f"small{i}", 10) for i in range(5)]
    wide = make_checkpoint("wide", 18)
    with start_daemon(dram_bytes=54 * MEGABYTES).connect() as store:
        for directory in small:
            store.load(directory)
        kept = [store.attach(directory) for directory in small[1::2]]
        for directory in small[::2]:
            store.evict(directory)
        attachment = store.attach(wide)

        assert attachment.receipt.scattered
        assert_same(attachment, wide)
        assert [image.scattered for image in store.status().images if image.path == str(wide)] == [True]
        for directory, old in zip(small[1::2], kept, strict=True):
            assert_same(old, directory)


def test_a_load_that_somebody_waits_for_overtakes_a_prefetch(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint
) -> None:
    large, small = make_checkpoint("large", 64), make_checkpoint("small", 4)
    with start_daemon("--ssd-bytes-per-second", str(16 * MEGABYTES)).connect() as store:
        store.prefetch(large)
        eventually(lambda: store.status().images[0].read_bytes > 0)
        receipt = store.attach(small).receipt
        image = next(image for image in store.status().images if image.path == str(large))

        assert image.state == "loading"
        assert receipt.queue_s < 1
        done = image.read_bytes
        eventually(lambda: store.status().images[0].read_bytes > done)
        assert [queue.paused_loads for queue in store.status().queues] == [0]


REQUESTS = [
    {"kind": "Attach", "id": 1, "path": "/nowhere", "session": "s", "progress": True},
    {"kind": "Reclaim", "id": 2, "arena_id": "a", "session": "s", "leases": [{"image_id": 1, "count": 1}]},
    {"kind": "MapArena", "id": 3},
    {"kind": "GetStatus", "id": 4},
    {"kind": "Release", "image_id": 5},
    {"kind": "Cancel", "id": 6},
    {"kind": "Evict", "id": 7, "path": "/nowhere"},
    {"kind": "Attach", "id": 8, "path": "s3://nowhere/x", "session": "s", "progress": False},
]
VALUES: list[object] = [
    None,
    -1,
    0,
    2**70,
    1e300,
    True,
    "",
    "\0",
    "x" * 5000,
    [],
    {},
    [[]],
    {"image_id": -1, "count": 2**65},
]


def mutated(chance: random.Random) -> bytes:
    """A frame that is right, nearly right, or not at all."""
    request = dict(chance.choice(REQUESTS))
    if chance.random() < 0.6:
        request[chance.choice([*request, "more"])] = chance.choice(VALUES)
    payload = bytearray(json.dumps(request).encode())
    if chance.random() < 0.3:
        payload[chance.randrange(len(payload))] = chance.randrange(256)
    data = frame(bytes(payload))
    return data[: chance.randrange(len(data))] if chance.random() < 0.1 else data


def test_whatever_a_peer_says_the_store_goes_on(daemon: Any, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    chance = random.Random(7)
    with daemon.connect() as store:
        attachment = store.attach(directory)
        child = daemon.child()
        for _ in range(100):
            store.status()  # it keeps up
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(20)
                peer.connect(os.fspath(daemon.socket))
                try:
                    for _ in range(chance.randrange(1, 6)):
                        peer.sendall(mutated(chance))
                except OSError:
                    continue

        status = store.status()
        assert [(image.path, image.leases) for image in status.images] == [(str(directory), 1)]
        assert daemon.child() == child
        assert "crashed" not in daemon.log.read_text()
        assert_same(attachment, directory)
        assert official_load_file(directory / "model.safetensors").keys() == attachment.tensors.keys()
