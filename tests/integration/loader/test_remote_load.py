"""Remote checkpoints over a real HTTP server: what is loaded, what is asked for, what the SSD cache keeps."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import (
    CheckpointChanged,
    CheckpointCorrupted,
    CheckpointIndexInvalid,
    CheckpointNotFound,
    CheckpointTruncated,
    ChunkHashesInvalid,
    NotSafetensors,
    RemoteDenied,
    RemoteUnavailable,
    RemoteUnsuitable,
    StoreCancelled,
    UnsafeCheckpoint,
)
from serverless_triton.loader.remote import loader as remote_loader
from serverless_triton.loader.remote.chunks import Chunk
from serverless_triton.loader.remote.journal import ChunkId
from serverless_triton.loader.remote.write_behind import WriteBehind
from tests.integration.loader import file_server as faults
from tests.integration.loader.file_server import FileServer, Handler, serving_files
from tests.integration.loader.remote_samples import (
    Tier,
    cached_bytes,
    checkpoint_bytes,
    hashes_of,
    quick,
    shard_index,
)

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


# What is loaded


@pytest.mark.parametrize("path", ["/models/a", "/models/a/", PATH])
def test_a_file_and_a_directory_with_it_load_byte_for_byte(server: FileServer, path: str):
    contents, result = Tier().load(server.url(path))
    assert contents == [server.files[PATH]]
    assert (result.tier, result.verified) == ("remote", False)


def test_shards_are_found_by_their_index(server: FileServer):
    names = ["model-1.safetensors", "model 2#?.safetensors"]
    server.files["/s/model.safetensors.index.json"] = shard_index(*names)
    shards = [checkpoint_bytes(1000, name="weight0"), checkpoint_bytes(CHUNK_BYTES, name="weight1", seed=1)]
    server.files["/s/model-1.safetensors"] = shards[0]
    server.files["/s/model%202%23%3F.safetensors"] = shards[1]
    contents, _ = Tier().load(server.url("/s"))
    assert contents == [shards[1], shards[0]]


def test_hashes_beside_the_file_verify_the_load(server: FileServer):
    server.files[f"{PATH}.chunks.json"] = hashes_of(server.files[PATH])
    assert Tier().load(server.url(PATH))[1].verified


def test_hashes_are_left_alone_where_the_store_does_not_verify(server: FileServer):
    server.files[f"{PATH}.chunks.json"] = b"nonsense"
    assert not Tier().load(server.url(PATH), verify=False)[1].verified


def test_hashes_of_another_version_are_refused(server: FileServer):
    server.files[f"{PATH}.chunks.json"] = hashes_of(server.files[PATH][:-1])
    with pytest.raises(ChunkHashesInvalid, match=r"model\.safetensors\.chunks\.json"):
        Tier().load(server.url(PATH))


def test_a_chunk_that_arrives_broken_is_fetched_again(server: FileServer):
    server.files[f"{PATH}.chunks.json"] = hashes_of(server.files[PATH])
    server.fail(PATH, faults.flipped, skip=2)
    contents, result = Tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]
    assert result.verified


def test_a_file_that_differs_from_its_hashes_is_corrupted(server: FileServer):
    server.files[f"{PATH}.chunks.json"] = hashes_of(server.files[PATH])
    server.files[PATH] = server.files[PATH][:-1] + b"\0"
    with pytest.raises(CheckpointCorrupted, match=r"model.safetensors: chunk 2 \(bytes 16777216 to .*remote tier"):
        Tier().load(server.url(PATH))


def test_a_header_is_checked_before_the_rest_is_asked_for(server: FileServer):
    server.files[PATH] = b"\xff" * SIZE_BYTES
    with pytest.raises(NotSafetensors):
        Tier().load(server.url(PATH))
    assert max(end for _, end in server.ranges(PATH) if end) == CHUNK_BYTES


def test_a_header_longer_than_a_chunk_is_read_as_a_whole(server: FileServer):
    header = b'{"__metadata__": {"a": "' + b"x" * (CHUNK_BYTES + 10) + b'"}}'
    server.files[PATH] = len(header).to_bytes(8, "little") + header
    contents, _ = Tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]


def test_a_tensor_in_two_shards_is_refused(server: FileServer):
    server.files["/s/model.safetensors.index.json"] = shard_index("a.safetensors", "b.safetensors")
    server.files["/s/a.safetensors"] = server.files["/s/b.safetensors"] = checkpoint_bytes(100)
    with pytest.raises(CheckpointIndexInvalid, match="weight"):
        Tier().load(server.url("/s"))


def test_progress_counts_every_byte_once_in_spite_of_retries(server: FileServer):
    server.fail(PATH, faults.cut_after(1000), skip=1, times=2)
    job = _core.ReadJob()
    Tier().load(server.url(PATH), job=job)
    assert job.bytes_done == len(server.files[PATH])


def test_a_throttled_load_takes_its_time_and_asks_for_less_at_once(server: FileServer):
    begin_s = time.monotonic()
    Tier(settings=quick(bytes_per_second=16_000_000)).load(server.url(PATH))
    assert time.monotonic() - begin_s > 0.8


@pytest.mark.parametrize(
    ("name", "fault", "skip"), [(PATH, faults.slow_loris, 1), (f"{PATH}.chunks.json", faults.stalled, 0)]
)
def test_a_cancelled_load_ends_at_once(server: FileServer, name: str, fault: Callable, skip: int):
    stop = threading.Event()
    server.fail(name, fault(stop), skip=skip, times=100)
    job = _core.ReadJob()
    threading.Timer(0.3, job.cancel).start()
    begin_s = time.monotonic()
    with pytest.raises(StoreCancelled):
        Tier(settings=quick(request_timeout_s=60, stall_timeout_s=60)).load(server.url(PATH), job=job)
    stop.set()
    assert time.monotonic() - begin_s < 10


def test_a_paused_load_begins_no_chunk_and_goes_on_when_it_is_resumed(server: FileServer):
    job = _core.ReadJob()
    server.fail(PATH, lambda *request: (job.pause(), Handler.range(*request)), skip=1)
    threading.Timer(0.5, job.resume).start()
    begin_s = time.monotonic()
    contents, _ = Tier(settings=quick(concurrency=1, patience_s=0.3)).load(server.url(PATH), job=job)
    assert contents == [server.files[PATH]]
    assert time.monotonic() - begin_s > 0.4


# What the servers do


def test_a_redirect_to_another_host_is_followed(server: FileServer):
    with serving_files() as other:
        other.files["/blob"] = server.files[PATH]
        server.fail(PATH, faults.redirect(other.url("/blob?signature=SECRET")), times=1000)
        contents, _ = Tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]


def test_a_failure_behind_a_redirect_does_not_tell_where_it_led(server: FileServer):
    with serving_files() as other:
        server.fail(PATH, faults.redirect(other.url("/gone?signature=SECRET")), times=1000)
        with pytest.raises(CheckpointNotFound) as failure:
            Tier().load(server.url(PATH))
    assert "SECRET" not in str(failure.value)
    assert str(other.port) not in str(failure.value)


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(500),
        faults.status(503),
        faults.status(429),
        faults.cut_after(0),
        faults.cut_after(3_000_000),
        faults.other_range,
        faults.too_short,
        faults.too_long,
        faults.header_bomb,
    ],
)
def test_what_a_server_does_wrong_now_and_then_is_asked_for_again(server: FileServer, fault):
    server.fail(PATH, fault, skip=1, times=2)
    contents, _ = Tier().load(server.url(PATH))
    assert contents == [server.files[PATH]]


def test_a_request_that_breaks_is_taken_up_where_it_broke(server: FileServer):
    server.fail(PATH, faults.cut_after(5_000_000), skip=2)
    Tier(settings=quick(concurrency=1)).load(server.url(PATH))
    resumed = [begin for begin, _ in server.ranges(PATH) if begin and begin % CHUNK_BYTES]
    assert len(resumed) == 1
    assert 4_000_000 < resumed[0] - CHUNK_BYTES <= 5_000_000


@pytest.mark.parametrize(
    "fault", [faults.status(500), faults.too_long, faults.other_range, faults.header_bomb, faults.cut_after(10)]
)
def test_a_server_that_is_wrong_for_good_is_unavailable_once_patience_has_run_out(server: FileServer, fault):
    server.fail(PATH, fault, skip=1, times=1000)
    with pytest.raises(RemoteUnavailable, match=PATH) as failure:
        Tier(settings=quick(patience_s=0.5)).load(server.url(PATH))
    assert "what the server says" not in str(failure.value)


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server: FileServer):
    stop = threading.Event()
    server.fail(PATH, faults.slow_loris(stop), skip=1, times=1000)
    with pytest.raises(RemoteUnavailable, match="took too long"):
        Tier(settings=quick(request_timeout_s=0.5, patience_s=1)).load(server.url(PATH))
    stop.set()


def test_nobody_at_the_port_is_unavailable(server: FileServer):
    with serving_files() as other:
        url = other.url(PATH)
    with pytest.raises(RemoteUnavailable, match="cannot be reached"):
        Tier(settings=quick(open_patience_s=0.5)).load(url)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (faults.status(401), RemoteDenied, "credentials"),
        (faults.status(403), RemoteDenied, "credentials"),
        (faults.status(404), CheckpointNotFound, "no http"),
        (faults.status(400), RemoteUnsuitable, "400"),
        (faults.ignore_range, RemoteUnsuitable, "ranges"),
    ],
)
def test_what_asking_again_does_not_help_fails_at_once_with_its_reason(server: FileServer, fault, error, words):
    server.fail(PATH, fault, times=1000)
    with pytest.raises(error, match=words):
        Tier().load(server.url(PATH))
    assert len(server.requests) == 1


def test_a_server_that_tells_no_versions_is_refused(server: FileServer):
    server.etags[PATH] = None
    with pytest.raises(RemoteUnsuitable, match="neither ETag nor Last-Modified"):
        Tier().load(server.url(PATH))


def test_an_object_that_changes_in_the_middle_is_never_mixed(server: FileServer):
    tier = Tier(settings=quick(concurrency=1))
    checkpoint = tier.opener.open(server.url(PATH))

    def change(handler, request, content):
        server.replace(PATH, checkpoint_bytes(SIZE_BYTES, seed=1))
        handler.range(request, server.files[PATH])

    server.fail(PATH, change, skip=1)
    with pytest.raises(CheckpointChanged, match=PATH):
        tier.load_checkpoint(checkpoint)


def test_an_exabyte_that_a_server_promises_is_only_a_number(server: FileServer):
    server.fail(PATH, faults.huge, times=1000)
    assert Tier().opener.open(server.url(PATH)).total_bytes == 10**18


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin", "\ud800"])
def test_an_index_that_names_other_places_is_refused(server: FileServer, name: str):
    server.files["/s/model.safetensors.index.json"] = shard_index(name)
    with pytest.raises(CheckpointIndexInvalid):
        Tier().opener.open(server.url("/s"))


def test_a_pickle_checkpoint_is_refused_unasked(server: FileServer):
    with pytest.raises(UnsafeCheckpoint):
        Tier().opener.open(server.url("/models/pytorch_model.bin"))
    assert not server.requests


def test_an_empty_file_is_truncated(server: FileServer):
    server.files[PATH] = b""
    with pytest.raises(CheckpointTruncated):
        Tier().opener.open(server.url(PATH))


def test_an_empty_directory_names_what_it_should_have(server: FileServer):
    with pytest.raises(CheckpointNotFound, match=r"neither model.safetensors nor model.safetensors.index.json"):
        Tier().opener.open(server.url("/nothing"))


def test_a_file_url_is_the_local_checkpoint(tmp_path: Path):
    path = tmp_path / "with blank" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(checkpoint_bytes(100))
    assert Tier().opener.open(f"file://{tmp_path}/with%20blank") == Checkpoint.open(path.parent)


def test_a_url_that_was_just_resolved_is_not_asked_about_again(server: FileServer):
    now_s = itertools.count()
    tier = Tier(settings=quick(freshness_s=1.5))
    tier.opener._clock = lambda: float(next(now_s))
    for _ in range(2):
        tier.opener.open(server.url(PATH))
    assert len(server.requests) == 1
    tier.opener.open(server.url(PATH))
    assert len(server.requests) == 2


# The SSD cache


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
