"""Remote checkpoints over a real HTTP server: what is loaded, verified, paused and cancelled."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import (
    CheckpointCorrupted,
    CheckpointIndexInvalid,
    ChunkHashesInvalid,
    NotSafetensors,
    StoreCancelled,
)
from tests.integration.loader import file_server as faults
from tests.integration.loader.file_server import FileServer, Handler, serving_files
from tests.integration.loader.remote_samples import Tier, checkpoint_bytes, hashes_of, quick, shard_index

SIZE_BYTES = 2 * CHUNK_BYTES + 12345
PATH = "/models/a/model.safetensors"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        files.files[PATH] = checkpoint_bytes(SIZE_BYTES)
        yield files


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


@pytest.mark.parametrize("code", [401, 403])
def test_hashes_that_may_not_be_read_leave_the_load_unverified_with_a_warning(
    server: FileServer, caplog: pytest.LogCaptureFixture, code: int
):
    server.files[f"{PATH}.chunks.json"] = hashes_of(server.files[PATH])
    server.fail(f"{PATH}.chunks.json", faults.status(code), times=1000)
    contents, result = Tier().load(server.url(PATH))
    assert (contents, result.verified) == ([server.files[PATH]], False)
    assert f"unverified url={server.url(PATH)}" in caplog.text


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
