"""What remote loads leave on the SSD, and what is taken from there."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import RemoteDenied, RemoteUnavailable
from serverless_triton.loader.remote import loader as remote_loader
from serverless_triton.loader.remote.chunks import Chunk
from serverless_triton.loader.remote.journal import ChunkId
from serverless_triton.loader.remote.write_behind import WriteBehind
from tests.integration.loader import file_server as faults
from tests.integration.loader.file_server import FileServer, serving_files
from tests.integration.loader.remote_samples import Tier, cached_bytes, checkpoint_bytes, hashes_of, quick

SIZE_BYTES = 2 * CHUNK_BYTES + 12345
PATH = "/models/a/model.safetensors"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        files.files[PATH] = checkpoint_bytes(SIZE_BYTES)
        yield files


@pytest.fixture
def make_tier(tmp_path: Path) -> Iterator[Callable[..., Tier]]:
    """make_tier(**options) has one cache directory for all that it makes; only one may be open at a time."""
    tiers: list[Tier] = []

    def make(**options) -> Tier:
        while tiers:
            tiers.pop().close()
        tiers.append(Tier(tmp_path / "cache", **options))
        return tiers[-1]

    yield make
    for tier in tiers:
        tier.close()


def test_a_load_leaves_a_verified_copy_that_is_the_same_checkpoint(server: FileServer, make_tier):
    tier = make_tier()
    remote = tier.opener.open(server.url(PATH))
    tier.load_checkpoint(remote)
    tier.settle()
    local = tier.opener.open(server.url(PATH))
    assert local == remote
    assert (remote.is_remote, local.is_remote) == (True, False)
    assert cached_bytes(local) == [server.files[PATH]]
    hashes = Path(f"{local.files[0].cached_path}.chunks.json").read_bytes()
    assert json.loads(hashes) == json.loads(hashes_of(server.files[PATH]))


def test_a_copy_outlives_the_store(server: FileServer, make_tier):
    make_tier().load(server.url(PATH))
    assert cached_bytes(make_tier().opener.open(server.url(PATH))) == [server.files[PATH]]


def test_a_new_version_is_not_served_from_the_old_copy(server: FileServer, make_tier):
    tier = make_tier()
    tier.load(server.url(PATH))
    tier.settle()
    server.replace(PATH, checkpoint_bytes(SIZE_BYTES, seed=1))
    contents, result = tier.load(server.url(PATH))
    assert contents == [server.files[PATH]]
    assert result.tier == "remote"


def test_a_copy_is_served_while_the_server_is_away(server: FileServer, make_tier):
    tier = make_tier(settings=quick(open_patience_s=0.3))
    tier.load(server.url(PATH))
    tier.settle()
    server.fail(PATH, faults.status(503), times=1000)
    assert cached_bytes(tier.opener.open(server.url(PATH))) == [server.files[PATH]]


def test_a_copy_is_not_served_to_who_may_no_longer_read_it(server: FileServer, make_tier):
    tier = make_tier()
    tier.load(server.url(PATH))
    tier.settle()
    server.fail(PATH, faults.status(403), times=1000)
    with pytest.raises(RemoteDenied):
        tier.opener.open(server.url(PATH))


def test_a_load_that_broke_goes_on_where_it_was_even_in_the_next_store(server: FileServer, make_tier):
    server.fail(PATH, faults.status(500), skip=3, times=1000)
    with pytest.raises(RemoteUnavailable):
        make_tier(settings=quick(concurrency=1, patience_s=0.5)).load(server.url(PATH))
    server.faults.clear()
    server.requests.clear()
    contents, result = make_tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]
    assert server.ranges(PATH) == [(0, 8), (2 * CHUNK_BYTES, len(server.files[PATH]))]
    assert result.tier == "ssd"
    assert result.tier_share == pytest.approx(2 * CHUNK_BYTES / len(contents[0]))


def test_what_was_left_and_is_not_as_it_was_written_is_fetched_again(server: FileServer, make_tier, tmp_path: Path):
    server.fail(PATH, faults.status(500), skip=3, times=1000)
    tier = make_tier(settings=quick(concurrency=1, patience_s=0.5))
    with pytest.raises(RemoteUnavailable):
        tier.load(server.url(PATH))
    tier.close()
    server.faults.clear()
    [left] = (tmp_path / "cache" / "partial").glob("*/model.safetensors")
    with left.open("r+b") as file:
        file.seek(CHUNK_BYTES + 77)
        file.write(b"\0" * 1000)
    tier = make_tier()
    contents, _ = tier.load(server.url(PATH))
    tier.settle()
    assert contents == [server.files[PATH]] == cached_bytes(tier.opener.open(server.url(PATH)))


def test_what_was_left_of_another_version_is_not_used(server: FileServer, make_tier):
    server.fail(PATH, faults.status(500), skip=3, times=1000)
    with pytest.raises(RemoteUnavailable):
        make_tier(settings=quick(concurrency=1, patience_s=0.5)).load(server.url(PATH))
    server.faults.clear()
    server.replace(PATH, checkpoint_bytes(SIZE_BYTES, seed=1))
    contents, result = make_tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]
    assert result.tier == "remote"


def test_a_checkpoint_larger_than_the_quota_loads_uncached_and_that_is_said(server: FileServer, make_tier):
    tier = make_tier(capacity_bytes=CHUNK_BYTES)
    contents, _ = tier.load(server.url(PATH))
    assert contents == [server.files[PATH]]
    assert "--cache-bytes" in tier.cache.status.problem


def test_the_copy_that_was_used_longest_ago_makes_room(server: FileServer, make_tier):
    for name in "bcd":
        server.files[f"/models/{name}/model.safetensors"] = checkpoint_bytes(SIZE_BYTES, seed=ord(name))
    tier = make_tier(capacity_bytes=3 * SIZE_BYTES)
    for name in "abac":
        checkpoint = tier.opener.open(server.url(f"/models/{name}"))
        if checkpoint.is_remote:
            tier.load_checkpoint(checkpoint)
            tier.settle()
    assert not tier.opener.open(server.url("/models/a")).is_remote
    assert tier.opener.open(server.url("/models/b")).is_remote
    assert not tier.opener.open(server.url("/models/c")).is_remote


def test_a_chunk_whose_image_is_gone_before_it_is_written_is_left_out(server: FileServer, make_tier):
    tier = make_tier()
    checkpoint = tier.opener.open(server.url(PATH))
    arena = _core.Arena(16 << 20, "4k")
    writer = WriteBehind(tier.cache, tier.cache.begin(checkpoint), arena)
    chunk = Chunk(file=checkpoint.files[0], id=ChunkId(0, 0), begin=0, end=CHUNK_BYTES, offset=0)
    writer.offer(chunk, _core.xxh3_128(server.files[PATH][:CHUNK_BYTES]))
    writer.close()
    writer.join(30)
    assert tier.opener.open(server.url(PATH)).is_remote
    with tier.cache.begin(checkpoint) as entry:
        assert entry.digests == {}


def test_two_loads_that_begin_together_are_each_cached_for_themselves(server: FileServer, make_tier, monkeypatch):
    second_is_fed = threading.Event()
    made = itertools.count()

    class SlowToBegin(WriteBehind):
        """The first one is made while the second one is used already."""

        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.number = next(made)
            if self.number == 0:
                assert second_is_fed.wait(30)

        def offer(self, chunk: Chunk, digest: str) -> None:
            super().offer(chunk, digest)
            if self.number == 1:
                second_is_fed.set()

    monkeypatch.setattr(remote_loader, "WriteBehind", SlowToBegin)
    tier = make_tier()
    names = ("a", "b")
    for seed, name in enumerate(names):
        server.files[f"/models/{name}/model.safetensors"] = checkpoint_bytes(SIZE_BYTES, seed=seed)
    checkpoints = [tier.opener.open(server.url(f"/models/{name}/model.safetensors")) for name in names]
    arena = _core.Arena(48 << 20, "4k")

    def load(number: int) -> None:
        pieces = [[(number * (24 << 20), checkpoints[number].files[0].bytes)]]
        tier.loader.load(checkpoints[number], pieces, arena, _core.ReadJob(), verify=False)

    loads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
    for thread in loads:
        thread.start()
    for thread in loads:
        thread.join(60)
    tier.settle()
    for checkpoint in checkpoints:
        content = server.files[checkpoint.files[0].real_path.removeprefix(server.url(""))]
        assert cached_bytes(tier.cache.locate(checkpoint)) == [content]
