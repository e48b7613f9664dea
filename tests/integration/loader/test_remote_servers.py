"""Remote checkpoints over a real HTTP server that does things wrong, says no, or serves what must be refused."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import (
    CheckpointChanged,
    CheckpointIndexInvalid,
    CheckpointNotFound,
    CheckpointTruncated,
    RemoteDenied,
    RemoteUnavailable,
    RemoteUnsuitable,
    UnsafeCheckpoint,
)
from tests.integration.loader import file_server as faults
from tests.integration.loader.file_server import FileServer, serving_files
from tests.integration.loader.remote_samples import Tier, checkpoint_bytes, quick, shard_index

SIZE_BYTES = 2 * CHUNK_BYTES + 12345
PATH = "/models/a/model.safetensors"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        files.files[PATH] = checkpoint_bytes(SIZE_BYTES)
        yield files


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
    assert 0 < resumed[0] - CHUNK_BYTES <= 5_000_000  # what was on its way when it broke is lost


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
