"""A real daemon, real files, real clients that are really killed."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import (
    Attachment,
    CheckpointNotFound,
    CheckpointTruncated,
    ImageLeased,
    Store,
    StoreCancelled,
    StoreError,
    StoreFull,
    StoreTimeout,
    StoreUnavailable,
    TensorNotFound,
    UnsafeCheckpoint,
)

MEGABYTES = 1 << 20
MakeCheckpoint = Callable[..., Path]
Daemon = Any


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.01)


def assert_same(attachment: Attachment, directory: Path) -> None:
    theirs = official_load_file(directory / "model.safetensors")
    assert attachment.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(attachment.tensors[name], tensor), name


def test_an_attachment_holds_the_official_reader_s_bytes(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()

    attachment = store.attach(directory)

    assert_same(attachment, directory)
    assert attachment.receipt.tier in ("ssd", "page_cache")
    assert attachment.receipt.bytes == (directory / "model.safetensors").stat().st_size
    assert attachment.receipt.read_s > 0
    assert attachment.receipt.attach_s > 0


def test_the_second_start_is_from_dram_even_after_the_first_worker_died(
    daemon: Daemon, make_checkpoint: MakeCheckpoint, start_client: Callable[..., "subprocess.Popen[str]"]
) -> None:
    directory = make_checkpoint()
    worker = start_client(daemon, directory)
    assert worker.stdout is not None
    assert worker.stdout.readline() in ("READY ssd\n", "READY page_cache\n")
    worker.kill()
    worker.wait()

    with daemon.connect() as store:
        attachment = store.attach(directory)

    assert attachment.receipt.tier == "dram"
    assert attachment.receipt.read_s == 0
    assert_same(attachment, directory)
    assert daemon.loads_started() == 1


def test_two_clients_that_want_one_model_cause_one_read(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(16 * MEGABYTES))
    directory = make_checkpoint(megabytes=4)
    results: list[Attachment] = []

    def attach() -> None:
        with daemon.connect() as store:
            results.append(store.attach(directory))

    threads = [threading.Thread(target=attach) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [attachment.receipt.tier for attachment in results] == ["ssd", "ssd"]
    assert daemon.loads_started() == 1
    for attachment in results:
        assert_same(attachment, directory)


def test_a_killed_client_releases_its_lease(
    daemon: Daemon, make_checkpoint: MakeCheckpoint, start_client: Callable[..., "subprocess.Popen[str]"]
) -> None:
    directory = make_checkpoint()
    client = start_client(daemon, directory)
    assert client.stdout is not None
    client.stdout.readline()
    with daemon.connect() as store:
        assert store.status().images[0].leases == 1
        client.kill()
        client.wait()

        eventually(lambda: store.status().leased_bytes == 0)
        assert store.evict(directory) == 1
        assert store.status().used_bytes == 0


def test_a_client_killed_while_it_waits_leaves_nothing(
    start_daemon: Callable[..., Daemon],
    make_checkpoint: MakeCheckpoint,
    start_client: Callable[..., "subprocess.Popen[str]"],
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(MEGABYTES))
    client = start_client(daemon, make_checkpoint(megabytes=64))
    with daemon.connect() as store:
        eventually(lambda: store.status().queue_depth == 1)
        client.kill()

        eventually(lambda: store.status().images == ())
        assert store.status().used_bytes == 0


def test_eviction_is_refused_under_a_lease(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    attachment = store.attach(directory)

    with pytest.raises(ImageLeased, match=str(directory)):
        store.evict(directory)
    store.release(attachment)

    assert dict(attachment.tensors) == {}
    assert store.evict(directory) == 1
    assert store.evict(directory) == 0


def test_a_lease_lasts_as_long_as_any_of_its_tensors(
    daemon: Daemon, store: Store, make_checkpoint: MakeCheckpoint
) -> None:
    directory = make_checkpoint()
    with daemon.connect() as other:
        attachment = other.attach(directory)
        kept = attachment.tensors["weight"]
        other.release(attachment)
    del attachment, other

    with pytest.raises(ImageLeased, match=str(directory)):
        store.evict(directory)
    assert torch.equal(kept, official_load_file(directory / "model.safetensors")["weight"])
    del kept
    eventually(lambda: store.status().leased_bytes == 0)  # told over another connection than the next question
    assert store.evict(directory) == 1


def test_a_lease_ends_with_the_last_reference_to_its_attachment(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    first, second = (store.attach(directory) for _ in range(2))
    assert store.status().images[0].leases == 2
    del first
    assert store.status().images[0].leases == 1
    del second
    assert store.status().images[0].leases == 0


def test_a_forked_child_that_drops_its_copies_ends_no_lease_of_its_parent(
    daemon: Daemon, make_checkpoint: MakeCheckpoint
) -> None:
    code = (
        "import gc, os, sys\nfrom serverless_triton.loader import ImageLeased, Store\n"
        "store = Store(sys.argv[1], connect_timeout_s=20)\nattachment = store.attach(sys.argv[2])\n"
        "child = os.fork()\n"
        "if not child:\n    store.release(attachment)\n    del attachment\n    gc.collect()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "try:\n    store.evict(sys.argv[2])\nexcept ImageLeased:\n    print('leased')\n"
    )
    command = [sys.executable, "-c", code, str(daemon.socket), str(make_checkpoint())]

    assert subprocess.check_output(command, text=True, timeout=60) == "leased\n"


def test_only_wanted_tensors_are_made(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()

    assert store.attach(directory, keys=["bias", "scalar"]).tensors.keys() == {"bias", "scalar"}
    assert store.attach(directory, keys=lambda name: name.startswith("w")).tensors.keys() == {"weight"}
    with pytest.raises(TensorNotFound, match="holds no tensor 'wieght'"):
        store.attach(directory, keys=["wieght"])
    assert store.status().leased_bytes == 0


def test_an_arena_mapped_ahead_shows_what_is_loaded_later(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    store.premap()
    directory = make_checkpoint()

    assert_same(store.attach(directory), directory)


def test_progress_is_told_while_an_attach_waits(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(32 * MEGABYTES))
    directory = make_checkpoint(megabytes=24)
    told: list[tuple[int, int]] = []
    with daemon.connect() as store:
        receipt = store.attach(directory, progress=lambda done, total: told.append((done, total))).receipt

    assert told == sorted(told)
    assert 0 < told[-1][0] <= receipt.bytes
    assert {total for _, total in told} == {receipt.bytes}


def test_what_a_progress_callback_raises_cancels_the_attach(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    daemon = start_daemon("--ssd-bytes-per-second", str(MEGABYTES))
    with daemon.connect() as store:
        with pytest.raises(Enough):
            store.attach(make_checkpoint(megabytes=64), progress=stop)

        eventually(lambda: store.status().images == ())


def test_leased_images_fill_the_store(start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint) -> None:
    daemon = start_daemon(dram_bytes=10 * MEGABYTES)
    first, second = make_checkpoint("first", 6), make_checkpoint("second", 6)
    with daemon.connect() as store:
        attachment = store.attach(first)
        with pytest.raises(StoreFull, match="second"):
            store.attach(second)
        with pytest.raises(StoreFull, match="in all"):
            store.attach(make_checkpoint("huge", 11))

        store.release(attachment)
        assert_same(store.attach(second), second)
        assert [image.path for image in store.status().images] == [str(second)]


def test_a_truncated_file_is_named_and_the_next_load_works(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    broken, good = make_checkpoint("broken"), make_checkpoint("good")
    os.truncate(broken / "model.safetensors", 1000)

    with pytest.raises(CheckpointTruncated, match=str(broken / "model.safetensors")):
        store.attach(broken)

    assert_same(store.attach(good), good)
    assert [image.path for image in store.status().images] == [str(good)]


def test_a_changed_file_is_read_again(daemon: Daemon, store: Store, make_checkpoint: MakeCheckpoint) -> None:
    old = store.attach(make_checkpoint()).tensors["weight"].clone()
    directory = make_checkpoint()

    attachment = store.attach(directory)

    assert attachment.receipt.tier != "dram"
    assert not torch.equal(attachment.tensors["weight"], old)
    assert_same(attachment, directory)
    assert daemon.loads_started() == 2


def test_shards_arrive_as_one_image(store: Store, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    directory.mkdir()
    for shard in ("a", "b"):
        tensor = official_load_file(make_checkpoint(shard, 1) / "model.safetensors")["weight"]
        save_file({shard: tensor}, directory / f"{shard}.safetensors")
    (directory / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    )

    attachment = store.attach(directory)

    for shard in ("a", "b"):
        assert torch.equal(attachment.tensors[shard], official_load_file(directory / f"{shard}.safetensors")[shard])


def test_tensors_outlive_their_connection_and_the_daemon(daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    with daemon.connect() as store:
        attachment = store.attach(directory)
    daemon.process.kill()

    assert_same(attachment, directory)


def test_a_throttled_store_reads_at_its_speed(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(20 * MEGABYTES))
    with daemon.connect() as store:
        receipt = store.attach(make_checkpoint(megabytes=10)).receipt
        bandwidth = store.status().bandwidth_bytes_per_second["ssd"]

    assert receipt.tier == "ssd"
    assert receipt.throttle_bytes_per_second == 20 * MEGABYTES
    assert 0.49 <= receipt.read_s < 5
    assert bandwidth <= 20.5 * MEGABYTES


def test_an_attach_that_takes_too_long_is_given_up(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(MEGABYTES))
    with daemon.connect() as store:
        with pytest.raises(StoreTimeout, match=r"0\.2 s"):
            store.attach(make_checkpoint(megabytes=64), timeout_s=0.2)

        eventually(lambda: store.status().images == ())
        assert store.attach(make_checkpoint("small", 0), timeout_s=10).receipt.bytes > 0


def test_an_attach_without_a_timeout_waits_for_as_long_as_anything_is_read(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(16 * MEGABYTES))
    first, second = make_checkpoint("first", 32), make_checkpoint("second", 32)
    with daemon.connect() as other, daemon.connect(timeout_s=1.5) as store:
        loading = threading.Thread(target=other.load, args=(first,))
        loading.start()
        eventually(lambda: store.status().queue_depth == 1)
        attachment = store.attach(second)
        loading.join()

        assert attachment.receipt.queue_s > 0
        assert attachment.receipt.read_s > 1.5
        assert_same(attachment, second)


def test_an_attach_without_a_timeout_is_given_up_when_nothing_is_read(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", "1")
    with daemon.connect(timeout_s=0.5) as store:
        for ask in (store.attach, store.load):
            with pytest.raises(StoreTimeout, match=r"stood still for 0\.5 s.*timeout_s.*prefetch"):
                ask(make_checkpoint(megabytes=64))


def test_a_waiting_attach_ends_when_another_thread_closes_the_store(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(MEGABYTES))
    store = daemon.connect()
    directory = make_checkpoint(megabytes=64)
    with daemon.connect() as observer:
        closer = threading.Thread(
            target=lambda: (eventually(lambda: observer.status().queue_depth == 1), store.close())
        )
        closer.start()
        with pytest.raises(StoreCancelled):
            store.attach(directory)
        closer.join()


def test_a_prefetched_model_is_a_dram_start(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    assert store.prefetch(directory).state in ("loading", "ready")
    eventually(lambda: store.status().images[0].state == "ready")

    assert store.attach(directory).receipt.tier == "dram"
    assert store.prefetch(directory).state == "ready"


@pytest.mark.parametrize(("wrong", "error"), [(-1, ValueError), ("5", TypeError)])
def test_a_time_to_wait_that_is_none_is_refused_and_the_store_goes_on(
    store: Store, make_checkpoint: MakeCheckpoint, wrong: Any, error: type[Exception]
) -> None:
    directory = make_checkpoint()
    for ask in (store.attach, store.load, store.prefetch, store.evict):
        with pytest.raises(error, match=r"^timeout_s is .*; give a number of seconds"):
            ask(directory, wrong)
    assert "weight" in store.attach(directory).tensors


def test_errors_of_the_checkpoint_arrive_typed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"")

    for path, error in ((tmp_path / "nowhere", CheckpointNotFound), (tmp_path / "pickle", UnsafeCheckpoint)):
        for ask in (store.attach, store.prefetch):
            with pytest.raises(error, match=path.name):
                ask(path)


@pytest.mark.parametrize("pages", ["tmpfs", "memfd", "4k"])
def test_the_arena_cannot_be_written_by_a_client(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint, pages: str
) -> None:
    daemon = start_daemon("--pages", pages)
    directory = make_checkpoint()
    code = (
        "import mmap, os, sys\nfrom serverless_triton.loader import Store\n"
        "store = Store(sys.argv[1], connect_timeout_s=20)\nattachment = store.attach(sys.argv[2])\n"
        "fds = [store._session.arena()._fd]\n"
        "for flags in (os.O_RDWR, os.O_WRONLY):\n"
        "    try:\n        fds.append(os.open(f'/proc/self/fd/{fds[0]}', flags))\n    except OSError:\n        pass\n"
        "for fd in fds:\n"
        "    attacks = [lambda: os.pwrite(fd, b'x', 0), lambda: os.ftruncate(fd, 0), lambda: mmap.mmap(fd, 4096)]\n"
        "    for attack in attacks:\n"
        "        try:\n            attack()\n        except (PermissionError, OSError):\n            continue\n"
        "        sys.exit('an attack succeeded')\n"
        "print('safe', flush=True)\nattachment.tensors['weight'].fill_(1)\nprint('written', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(daemon.socket), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "safe\n", done.stderr
    assert done.returncode == -11  # SIGSEGV: the mapping is read-only
    with daemon.connect() as store:
        assert_same(store.attach(directory), directory)


def test_no_store_at_the_socket_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="nothing"):
        Store(tmp_path / "nothing", connect_timeout_s=0.05)


def test_a_store_that_dies_is_noticed(start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(MEGABYTES))
    directory = make_checkpoint(megabytes=64)
    with daemon.connect() as store, daemon.connect() as observer:
        killer = threading.Thread(
            target=lambda: (eventually(lambda: observer.status().queue_depth == 1), daemon.process.kill())
        )
        killer.start()
        with pytest.raises(StoreUnavailable, match=str(daemon.socket)):
            store.attach(directory)
        killer.join()
        with pytest.raises(StoreError):
            store.status()
