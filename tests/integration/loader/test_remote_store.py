"""URLs through a real store: attach, load, pin, estimate and evict, with and without copies on the SSD."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from serverless_triton.loader import Store
from serverless_triton.loader.errors import (
    CheckpointChanged,
    CheckpointNotFound,
    RemoteUrlRefused,
    StoreTimeout,
)
from tests.integration.loader.file_server import FileServer, serving_files

PATH = "/models/a/model.safetensors"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        tensors = {"weight": torch.randint(0, 255, (20_000_000,), dtype=torch.uint8), "bias": torch.rand(7)}
        files.files[PATH] = save(tensors)
        yield files


@pytest.fixture
def start_caching(start_daemon: Callable, tmp_path: Path) -> Callable:
    """start_caching() starts a store with an SSD cache; of several one after the other it is the same."""

    def start(*options: str, cache_bytes: int = 1 << 30):
        cache = ("--cache-dir", str(tmp_path / "copies"), "--cache-bytes", str(cache_bytes))
        return start_daemon(*cache, *options, dram_bytes=128 << 20)

    return start


def wait_for_copy(store: Store) -> None:
    deadline_s = time.monotonic() + 20
    while not store.status().ssd_cache.entries:
        assert time.monotonic() < deadline_s, "the load was not cached"
        time.sleep(0.02)


def assert_same(tensors: dict, content: bytes) -> None:
    expected = load(content)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_url_is_attached_like_a_local_checkpoint(server: FileServer, store: Store):
    attachment = store.attach(server.url("/models/a"))
    assert_same(attachment.tensors, server.files[PATH])
    assert (attachment.receipt.tier, attachment.receipt.bytes) == ("remote", len(server.files[PATH]))
    assert store.attach(server.url("/models/a/")).receipt.tier == "dram"
    status = store.status()
    assert [image.path for image in status.images] == [server.url("/models/a")]
    assert status.bandwidth_bytes_per_second["remote"] > 0


def test_the_second_start_is_from_the_copy_on_the_ssd_and_verified(server: FileServer, start_caching: Callable):
    url = server.url("/models/a")
    with start_caching().connect() as store:
        assert store.load(url).tier == "remote"
        wait_for_copy(store)
        assert store.estimate(url).tier == "dram"
        assert store.load(url).tier == "dram", "a copy is no reason to read again what is in memory"
        assert store.evict(url) == 1
        assert store.estimate(url).tier in ("ssd", "page_cache")
        attachment = store.attach(url)
        assert_same(attachment.tensors, server.files[PATH])
        assert attachment.receipt.tier in ("ssd", "page_cache")
        assert attachment.receipt.verified


@pytest.mark.parametrize("options", [(), ("--no-verify",)])
def test_a_broken_copy_is_removed_and_the_original_fetched(
    server: FileServer, start_caching: Callable, tmp_path: Path, options: tuple[str, ...]
):
    url, daemon = server.url(PATH), start_caching(*options)
    with daemon.connect() as store:
        store.load(url)
        wait_for_copy(store)
        store.evict(url)
        [copy] = (tmp_path / "copies" / "entries").glob("*/model.safetensors")
        with copy.open("r+b") as file:
            file.seek(9_000_000)
            file.write(b"broken")
        attachment = store.attach(url)
        assert attachment.receipt.tier == "remote"
        assert_same(attachment.tensors, server.files[PATH])
        assert re.search("removed the copy of .* does not match its hash", daemon.log.read_text())


def test_a_load_that_was_killed_with_its_daemon_goes_on_in_the_next(server: FileServer, start_caching: Callable):
    server.bytes_per_second = 20_000_000
    daemon = start_caching()
    with daemon.connect() as store:
        store.prefetch(server.url(PATH))
    while len(server.ranges(PATH)) < 3:
        time.sleep(0.01)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    server.bytes_per_second = 0
    with start_caching().connect() as store:
        assert_same(store.attach(server.url(PATH)).tensors, server.files[PATH])


def test_a_new_version_is_a_new_image(server: FileServer, store: Store):
    with serving_files() as other:
        other.files[PATH] = server.files[PATH]
        url = other.url(PATH)
        checkpoint = store.attach(url)
        other.replace(PATH, save({"other": torch.rand(500_000)}))
        deadline_s = time.monotonic() + 30
        while store.attach(url).receipt.tier == "dram" and time.monotonic() < deadline_s:
            time.sleep(0.5)
        assert set(store.attach(url).tensors) == {"other"}
        assert_same(checkpoint.tensors, server.files[PATH])


def test_a_change_in_the_middle_fails_the_load_and_the_next_one_is_of_the_new_version(server: FileServer, store: Store):
    def change(handler, request, content):
        server.replace(PATH, save({"other": torch.rand(500_000)}))
        handler.status(500)

    server.fail(PATH, change, skip=1)
    with pytest.raises(CheckpointChanged):
        store.attach(server.url(PATH))
    assert set(store.attach(server.url(PATH)).tensors) == {"other"}


def test_errors_of_urls_come_to_the_client_as_they_are(server: FileServer, store: Store):
    with pytest.raises(CheckpointNotFound):
        store.attach(server.url("/nothing"))
    for question in (store.attach, store.prefetch, store.pin, store.estimate, store.evict, store.unpin):
        with pytest.raises(RemoteUrlRefused, match="credentials"):
            question("https://user:secret@127.0.0.1/model")


def test_who_gives_up_on_a_slow_server_is_answered_at_once_and_others_are_served(
    server: FileServer, store: Store, make_checkpoint: Callable
):
    server.fail(PATH, lambda *_: time.sleep(3), times=1000)
    begin_s = time.monotonic()
    with pytest.raises(StoreTimeout):
        store.attach(server.url(PATH), timeout_s=0.3)
    assert store.attach(make_checkpoint()).receipt.tier != "dram"
    assert time.monotonic() - begin_s < 3


def test_remote_loads_do_not_wait_for_local_ones_or_the_other_way(
    server: FileServer, store: Store, make_checkpoint: Callable
):
    server.bytes_per_second = 5_000_000
    store.prefetch(server.url(PATH))
    assert store.attach(make_checkpoint()).receipt.queue_s < 1
    devices = {queue.device for queue in store.status().queues}
    assert f"remote:http://127.0.0.1:{server.port}" in devices
    server.bytes_per_second = 0


def test_a_store_of_local_checkpoints_never_imports_what_the_network_needs():
    code = (
        "import sys, serverless_triton.loader.daemon, serverless_triton.loader.client\n"
        "sys.exit(bool({'asyncio', 'obstore', 'aiohttp'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_loads_a_url_and_shows_the_copies(server: FileServer, start_caching: Callable):
    daemon = start_caching()

    def run(*arguments: str) -> dict:
        command = [sys.executable, "-m", "serverless_triton.cli", "store", *arguments, "--socket", str(daemon.socket)]
        return json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)

    with daemon.connect() as store:
        assert run("load", server.url("/models/a"))["tier"] == "remote"
        wait_for_copy(store)
    assert run("status")["ssd_cache"]["entries"] == 1
    assert run("pin", server.url("/models/a"))["tier"] == "dram"
    assert run("unpin", server.url("/models/a"))["unpinned"] == 1
    assert run("evict", server.url("/models/a"))["evicted"] == 1
