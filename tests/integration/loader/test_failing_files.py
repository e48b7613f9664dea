"""Files that fail while they are read: a disk that answers EIO or not at all, a file that ends or changes meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import (
    CheckpointChanged,
    CheckpointTruncated,
    CheckpointUnreadable,
    Store,
    StoreTimeout,
    TensorSlice,
    hash_checkpoint,
    load_file,
    load_slices,
)
from serverless_triton.loader._core import CHUNK_BYTES, FileImage, Mapping, Reader, ReadJob
from tests.unit.loader.safetensors_files import assert_same

HERE = Path(__file__).parent
MAY_NOT_MOUNT = 77

ShowFile = Callable[..., Path]
Daemon = Any


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two chunks and a bit, hashed; on the disk, and not in the page cache."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.rand(2 * CHUNK_BYTES // 4 + 1000), "bias": torch.rand(7)}, path)
    hash_checkpoint(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def show_file(tmp_path: Path, checkpoint: Path) -> Iterator[ShowFile]:
    """show_file("--end-at", "9", ...) is the checkpoint as a file that fails that way (fuse_file.py)."""
    servers = []

    def show(*options: str, backing: Path = checkpoint) -> Path:
        place = tmp_path / f"failing{len(servers)}.safetensors"
        place.touch()
        command = [sys.executable, str(HERE / "fuse_file.py"), str(place), str(backing), *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n" and server.wait(10) == MAY_NOT_MOUNT:
            pytest.skip("this system lets us mount no file system")
        return place

    yield show
    for server in servers:
        server.terminate()
        server.wait(10)
        assert server.stdout is not None
        server.stdout.close()


def read_all(path: Path, engine: str) -> bytes:
    file = FileImage(str(path))
    room = -(-file.bytes // CHUNK_BYTES) * CHUNK_BYTES
    memory = Mapping.anonymous(room)
    report = Reader(threads=2, engine=engine).read([file], memory, [[(0, room)]], ReadJob())
    assert report.disk_bytes == file.bytes
    assert report.uring_bytes == (report.direct_bytes if Reader(threads=1, engine=engine).engine == "io_uring" else 0)
    return bytes(memory)[: file.bytes]


engines = pytest.mark.parametrize("engine", ["auto", "pread"])


@engines
def test_a_sound_file_of_that_kind_reads_whole(show_file: ShowFile, checkpoint: Path, engine: str) -> None:
    assert read_all(show_file(), engine) == checkpoint.read_bytes()


@engines
@pytest.mark.parametrize(("fail_from", "chunk"), [(4096 * 3, 0), (CHUNK_BYTES, 1), (2 * CHUNK_BYTES + 4096, 2)])
def test_an_io_error_names_file_chunk_and_tier(show_file: ShowFile, engine: str, fail_from: int, chunk: int) -> None:
    path = show_file("--fail-from", str(fail_from))

    with pytest.raises(CheckpointUnreadable, match=rf"{path}: chunk {chunk} .*read from ssd: Input/output error"):
        read_one_thread(path, engine)


def read_one_thread(path: Path, engine: str) -> None:
    """In order, so that the first failing chunk is the one that is told of."""
    file = FileImage(str(path))
    room = -(-file.bytes // CHUNK_BYTES) * CHUNK_BYTES
    Reader(threads=1, engine=engine).read([file], Mapping.anonymous(room), [[(0, room)]], ReadJob())


@engines
@pytest.mark.parametrize(
    "end_at", [4096, 4097, 1 << 20, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 5]
)
def test_a_file_that_ends_early_anywhere_is_truncated(show_file: ShowFile, engine: str, end_at: int) -> None:
    path = show_file("--end-at", str(end_at))

    with pytest.raises(CheckpointTruncated, match=rf"{path}: chunk {end_at // CHUNK_BYTES} .*became shorter"):
        read_one_thread(path, engine)


def test_the_python_faces_tell_the_same(show_file: ShowFile) -> None:
    failing, ending = show_file("--fail-from", str(CHUNK_BYTES)), show_file("--end-at", str(CHUNK_BYTES))

    for load in (load_file, lambda path: load_slices(path, {"weight": TensorSlice(0, 1, 2)})):
        with pytest.raises(CheckpointUnreadable, match=rf"{failing}: chunk [12] .*from ssd: Input/output error"):
            load(failing)
        with pytest.raises(CheckpointTruncated, match=rf"{ending}: chunk [12] "):
            load(ending)


@pytest.mark.parametrize(
    ("option", "error", "reason"),
    [
        ("--fail-from", CheckpointUnreadable, "read from ssd: Input/output error"),
        ("--end-at", CheckpointTruncated, "became shorter"),
    ],
)
def test_a_store_tells_its_clients_the_same_and_keeps_nothing_of_it(
    daemon: Daemon,
    store: Store,
    show_file: ShowFile,
    checkpoint: Path,
    option: str,
    error: type[Exception],
    reason: str,
) -> None:
    path = show_file(option, str(CHUNK_BYTES))
    before = open_files(daemon)

    with pytest.raises(error, match=rf"{path}: chunk [12] .*{reason}"):
        store.attach(path)

    status = store.status()
    assert (status.images, status.used_bytes, status.leased_bytes, status.queue_depth) == ((), 0, 0, 0)
    assert open_files(daemon) == before
    assert_same(store.attach(checkpoint).tensors, official_load_file(checkpoint))


def open_files(daemon: Daemon) -> list[str]:
    """What regular files the serving process has open."""
    links = (str(link.readlink()) for link in Path(f"/proc/{daemon.child()}/fd").iterdir())
    return sorted(link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/proc/")))


@pytest.mark.parametrize("ask", ["attach", "prefetch", "pin", "unpin", "evict", "estimate"])
def test_a_mount_that_hangs_keeps_back_who_asks_for_it_alone(
    daemon: Daemon, store: Store, show_file: ShowFile, checkpoint: Path, ask: str
) -> None:
    assert_only_the_asker_waits(daemon, store, getattr(store, ask), show_file("--hang", "getattr"), checkpoint)


def test_a_mount_that_hangs_once_it_is_sampled_keeps_back_the_estimate_alone(
    daemon: Daemon, store: Store, show_file: ShowFile, checkpoint: Path
) -> None:
    assert_only_the_asker_waits(daemon, store, store.estimate, show_file("--hang", "open"), checkpoint)


def assert_only_the_asker_waits(
    daemon: Daemon, store: Store, ask: Callable[[Path, float], object], hanging: Path, checkpoint: Path
) -> None:
    """Others are served meanwhile, and the asker is when it has given up."""
    with ThreadPoolExecutor(1) as pool, daemon.connect(timeout_s=10.0) as other:
        asked = pool.submit(ask, hanging, 1.0)
        assert_same(other.attach(checkpoint).tensors, official_load_file(checkpoint))
        assert other.estimate(checkpoint).tier == "dram"
        assert other.evict(checkpoint) == 1
        with pytest.raises(StoreTimeout, match=r"took longer than 1 s"):
            asked.result(timeout=10.0)
        assert store.status().images == ()


def test_a_name_that_leads_to_another_device_between_two_opens_is_read_from_one_file(
    show_file: ShowFile, checkpoint: Path, tmp_path: Path
) -> None:
    link, other = tmp_path / "link.safetensors", tmp_path / "other"
    other.write_bytes(bytes(checkpoint.stat().st_size))
    link.symlink_to(show_file("--relink", str(link), str(show_file(backing=other))))

    assert read_all(link, "pread") == checkpoint.read_bytes()


def test_a_file_that_is_written_while_it_is_read_has_changed(show_file: ShowFile) -> None:
    whole, sliced = show_file("--touch"), show_file("--touch")

    with pytest.raises(CheckpointChanged, match=str(whole)):
        load_file(whole)
    with pytest.raises(CheckpointChanged, match=str(sliced)):
        load_slices(sliced, {"weight": None})


def test_a_file_that_fails_for_one_process_only_fails_by_pread_too(tmp_path: Path, checkpoint: Path) -> None:
    shim = tmp_path / "failing_pread.so"
    compiler = ["cc", "-shared", "-fPIC", "-o", str(shim), str(HERE / "failing_pread.c"), "-ldl"]
    if subprocess.run(compiler, check=False).returncode != 0:
        pytest.skip("there is no C compiler")
    failing = {"LD_PRELOAD": str(shim), "FAILING_PATH": str(checkpoint), "FAILING_FROM": str(CHUNK_BYTES)}
    code = f"from serverless_triton.loader import load_file; load_file({str(checkpoint)!r})"

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **failing}, capture_output=True, text=True, check=False
    )

    assert "CheckpointUnreadable" in done.stderr
    assert f"{checkpoint}: chunk " in done.stderr
    assert "read from ssd: Input/output error" in done.stderr
    assert official_load_file(checkpoint).keys() == load_file(checkpoint).keys()
