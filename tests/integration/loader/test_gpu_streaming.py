"""Chunks go on to the GPU while their checkpoint is still being read: from files, from copies on the SSD, from URLs."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from serverless_triton.loader import Store
from serverless_triton.loader.attachment import Attachment
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from tests.integration.loader.file_server import FileServer, Handler, Request, serving_files
from tests.integration.loader.remote_samples import hashes_of

from .conftest import Daemon

GPU = "cuda:0"
PATH = "/models/a/model.safetensors"
SIZE_BYTES = 5 * CHUNK_BYTES
SLOW_BYTES_PER_SECOND = 2 * CHUNK_BYTES
WAIT_S = 20.0


class CopyLog:
    """What the emulated driver has copied to its device."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def bytes(self) -> int:
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return sum(map(int, lines))


@pytest.fixture
def copies(cuda_driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CopyLog:
    if "emulated" not in cuda_driver:
        pytest.skip("a real driver does not tell of its copies")
    log = CopyLog(tmp_path / "copies.log")
    monkeypatch.setenv("EMULATED_CUDA_COPY_LOG", str(log.path))
    return log


@pytest.fixture
def start(start_daemon: Callable[..., Daemon], tmp_path: Path, copies: CopyLog) -> Callable[..., Daemon]:
    """start(*options) starts a store with a GPU tier and an SSD cache, which is the same for each."""

    def start(*options: str) -> Daemon:
        cache = ("--cache-dir", str(tmp_path / "copies"), "--cache-bytes", str(1 << 30))
        return start_daemon("--gpu-bytes", str(128 << 20), *cache, *options)

    return start


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        files.files[PATH] = save({"weight": torch.randint(0, 255, (SIZE_BYTES,), dtype=torch.uint8)})
        yield files


@contextmanager
def attaching(store: Store, path: Path | str) -> Iterator[Future[Attachment]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(store.attach, path, device=GPU)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def assert_on_gpu(attachment: Attachment, content: bytes) -> None:
    assert torch.equal(attachment.tensors["weight"].cpu(), load(content)["weight"])


def keep_copy(daemon: Daemon, url: str) -> None:
    """The store has a copy on the SSD, and nothing in memory."""
    with daemon.connect() as store:
        store.load(url)
        wait_until(lambda: bool(store.status().ssd_cache.entries))
    daemon.stop()


def test_chunks_of_a_local_file_are_copied_while_it_is_read(
    start: Callable[..., Daemon], copies: CopyLog, make_checkpoint: Callable[..., Path]
) -> None:
    directory = make_checkpoint(megabytes=40)
    daemon = start("--ssd-bytes-per-second", str(SLOW_BYTES_PER_SECOND))
    with daemon.connect() as store, attaching(store, directory) as attachment:
        wait_until(lambda: copies.bytes >= 2 * CHUNK_BYTES)
        assert "load finished" not in daemon.log.read_text()

        assert_on_gpu(attachment.result(WAIT_S), (directory / "model.safetensors").read_bytes())
    assert copies.bytes == (directory / "model.safetensors").stat().st_size, "each byte is copied once"


def test_chunks_of_a_url_are_copied_before_the_last_has_come(
    start: Callable[..., Daemon], copies: CopyLog, server: FileServer
) -> None:
    content, may_answer = server.files[PATH], threading.Event()

    def held_back(handler: Handler, request: Request, content: bytes) -> None:
        if request.begin == 2 * CHUNK_BYTES:
            may_answer.wait(WAIT_S)
        handler.range(request, content)

    server.fail(PATH, held_back, times=1000)
    daemon = start()
    with daemon.connect() as store, attaching(store, server.url(PATH)) as attachment:
        wait_until(lambda: copies.bytes == len(content) - CHUNK_BYTES)
        assert "load finished" not in daemon.log.read_text()
        may_answer.set()

        assert_on_gpu(attachment.result(WAIT_S), content)
    assert copies.bytes == len(content), "each byte is copied once"


def test_chunks_of_a_copy_on_the_ssd_are_copied_while_it_is_read(
    start: Callable[..., Daemon], copies: CopyLog, server: FileServer
) -> None:
    keep_copy(start(), server.url(PATH))
    daemon = start("--ssd-bytes-per-second", str(SLOW_BYTES_PER_SECOND))
    with daemon.connect() as store, attaching(store, server.url(PATH)) as attachment:
        wait_until(lambda: copies.bytes >= 2 * CHUNK_BYTES)
        assert "load finished" not in daemon.log.read_text()

        assert attachment.result(WAIT_S).receipt.tier != "remote"
        assert_on_gpu(attachment.result(), server.files[PATH])
    assert copies.bytes == len(server.files[PATH]), "each byte is copied once"


def test_nothing_of_a_copy_that_turns_out_to_be_bad_stays_on_the_gpu(
    start: Callable[..., Daemon], copies: CopyLog, server: FileServer, tmp_path: Path
) -> None:
    keep_copy(start(), server.url(PATH))
    [copy] = (tmp_path / "copies" / "entries").glob("*/model.safetensors")
    replace_with_hashes(copy, server.files[PATH][:-CHUNK_BYTES] + bytes(CHUNK_BYTES))
    daemon = start("--ssd-bytes-per-second", str(SLOW_BYTES_PER_SECOND))
    with daemon.connect() as store, attaching(store, server.url(PATH)) as attachment:
        wait_until(lambda: copies.bytes > 0)
        os.utime(copy)  # the read goes on to its end, and then sees that somebody was there

        assert attachment.result(WAIT_S).receipt.tier == "remote"
        assert_on_gpu(attachment.result(), server.files[PATH])
    assert copies.bytes == 2 * len(server.files[PATH]), "both reads were copied on"


def replace_with_hashes(file: Path, content: bytes) -> None:
    """So that no chunk differs from its hash."""
    file.write_bytes(content)
    file.with_name(f"{file.name}.chunks.json").write_bytes(hashes_of(content))
