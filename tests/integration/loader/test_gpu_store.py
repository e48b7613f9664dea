"""The store's GPU tier from end to end: a real daemon, real clients, and the driver that the environment names."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as official_load_file

from serverless_triton.loader import _core
from serverless_triton.loader.client import Store
from serverless_triton.loader.errors import (
    CheckpointCorrupted,
    DeviceError,
    DeviceOutOfMemory,
    DeviceUnavailable,
    ImageLeased,
    StoreFull,
    StoreUnavailable,
    TensorNotFound,
)
from serverless_triton.loader.integrity import hash_checkpoint
from serverless_triton.loader.replies import Estimated
from serverless_triton.loader.requests import AttachDevice, GetEstimate
from serverless_triton.loader.store_status import DeviceStatus

from .conftest import Daemon

pytestmark = pytest.mark.usefixtures("cuda_driver")

GPU = "cuda:0"
MEGABYTES = 1 << 20
StartDaemon = Callable[..., Daemon]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def gpu_daemon(start_daemon: StartDaemon) -> Daemon:
    return start_daemon("--gpu-bytes", str(64 * MEGABYTES))


@pytest.fixture
def gpu_store(gpu_daemon: Daemon) -> Iterator[Store]:
    with gpu_daemon.connect() as store:
        yield store


def on_gpu(store: Store) -> DeviceStatus:
    (status,) = store.status().devices
    return status


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def assert_equal(tensors: "dict[str, torch.Tensor]", directory: Path) -> None:
    expected = official_load_file(directory / "model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert torch.equal(tensor.cpu().reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8))


def test_tensors_on_the_device_equal_the_official_reader_s(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint(megabytes=19)

    attachment = gpu_store.attach(directory, device=GPU)

    assert_equal(dict(attachment.tensors), directory)
    assert attachment.receipt.tier in ("ssd", "page_cache")
    assert attachment.receipt.copy_s > 0


def test_what_is_in_dram_is_copied_from_there(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint(megabytes=19)
    gpu_store.load(directory)

    attachment = gpu_store.attach(directory, device=GPU)

    assert attachment.receipt.tier == "dram"
    assert_equal(dict(attachment.tensors), directory)


def test_a_swap_back_is_free(gpu_daemon: Daemon, gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    with gpu_daemon.connect() as first:
        first.attach(directory, device=GPU)
    gc.collect()
    wait_until(lambda: on_gpu(gpu_store).leased_bytes == 0)

    attachment = gpu_store.attach(directory, device=GPU)

    assert attachment.receipt.tier == "gpu"
    assert_equal(dict(attachment.tensors), directory)
    assert on_gpu(gpu_store).copies == 1


def test_the_image_leaves_dram_without_the_device_losing_it(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    one, other = make_checkpoint("one", 60), make_checkpoint("other", 200)
    attachment = gpu_store.attach(one, device=GPU)

    gpu_store.load(other)

    assert [image.path for image in gpu_store.status().images] == [str(other)]
    assert_equal(dict(attachment.tensors), one)


def test_the_lease_ends_with_the_last_tensor(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    one, other = make_checkpoint("one", 40), make_checkpoint("other", 40)
    tensor = gpu_store.attach(one, device=GPU).tensors["weight"]
    gc.collect()
    with pytest.raises(StoreFull, match="leased"):
        gpu_store.attach(other, device=GPU)
    with pytest.raises(ImageLeased):
        gpu_store.evict(one)

    del tensor
    gc.collect()
    attachment = gpu_store.attach(other, device=GPU)

    assert_equal(dict(attachment.tensors), other)
    assert [image.path for image in on_gpu(gpu_store).images] == [str(other)]


def test_tensors_outlive_the_store_s_close(
    gpu_daemon: Daemon, gpu_store: Store, make_checkpoint: MakeCheckpoint
) -> None:
    directory = make_checkpoint()
    with gpu_daemon.connect() as store:
        tensors = dict(store.attach(directory, device=GPU).tensors)

    assert on_gpu(gpu_store).leased_bytes > 0
    assert_equal(tensors, directory)
    tensors.clear()
    gc.collect()
    wait_until(lambda: on_gpu(gpu_store).leased_bytes == 0)


def test_a_released_attachment_gives_its_lease_back(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    attachment = gpu_store.attach(make_checkpoint(), device=GPU)

    gpu_store.release(attachment)
    gc.collect()

    wait_until(lambda: on_gpu(gpu_store).leased_bytes == 0)
    assert on_gpu(gpu_store).used_bytes > 0


def test_two_clients_wait_for_one_copy_and_share_its_memory(
    gpu_daemon: Daemon, gpu_store: Store, make_checkpoint: MakeCheckpoint
) -> None:
    directory = make_checkpoint(megabytes=40)
    command = [sys.executable, "-c", CLIENT, str(gpu_daemon.socket), str(directory)]
    clients = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        sums = [client.stdout.readline() for client in clients if client.stdout]
        status = on_gpu(gpu_store)
    finally:
        for client in clients:
            client.communicate()

    expected = official_load_file(directory / "model.safetensors")["weight"].sum(dtype=torch.int64).item()
    assert sums == [f"{expected}\n"] * 2
    assert (status.copies, status.used_bytes, status.images[0].leases) == (1, 42 * MEGABYTES, 2)


def test_a_killed_client_s_lease_ends(gpu_daemon: Daemon, gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    command = [sys.executable, "-c", CLIENT, str(gpu_daemon.socket), str(make_checkpoint())]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout
    assert client.stdout.readline()
    assert on_gpu(gpu_store).leased_bytes > 0

    client.kill()
    client.communicate()

    wait_until(lambda: on_gpu(gpu_store).leased_bytes == 0)


def test_only_the_wanted_tensors_are_made(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()

    assert gpu_store.attach(directory, device=GPU, keys=["bias"]).tensors.keys() == {"bias"}
    with pytest.raises(TensorNotFound, match="nothing"):
        gpu_store.attach(directory, device=GPU, keys=["nothing"])


def test_estimates_know_the_tier(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    before = gpu_store.estimate(directory, device=GPU)

    gpu_store.load(directory, device=GPU)

    assert before.tier in ("ssd", "page_cache")
    assert before.total_s >= before.copy_s > 0
    assert gpu_store.estimate(directory, device=GPU).tier == "gpu"
    assert gpu_store.estimate(directory).tier == "dram"


def test_an_estimate_of_what_is_on_the_device_needs_no_room_in_dram(
    gpu_store: Store, make_checkpoint: MakeCheckpoint
) -> None:
    directory = make_checkpoint("one", 60)
    gpu_store.load(directory, device=GPU)
    held = gpu_store.attach(make_checkpoint("other", 200))

    assert gpu_store.estimate(directory, device=GPU).tier == "gpu"
    with pytest.raises(StoreFull):
        gpu_store.estimate(directory)
    gpu_store.release(held)


def test_an_evicted_image_leaves_the_device_too(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    gpu_store.load(directory, device=GPU)

    assert gpu_store.evict(directory) == 2

    assert on_gpu(gpu_store).used_bytes == 0


def test_an_image_that_is_only_on_the_device_is_counted(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint("one", 60)
    gpu_store.load(directory, device=GPU)
    gpu_store.load(make_checkpoint("other", 200))

    assert gpu_store.evict(directory) == 1

    assert on_gpu(gpu_store).used_bytes == 0


def test_a_chunk_that_differs_from_its_hash_reaches_nobody(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint(megabytes=19)
    hash_checkpoint(directory)
    file = directory / "model.safetensors"
    status = file.stat()
    with file.open("r+b") as content:
        content.seek(17 * MEGABYTES)
        content.write(b"broken")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(CheckpointCorrupted):
        gpu_store.attach(directory, device=GPU)

    wait_until(lambda: on_gpu(gpu_store).used_bytes == 0)
    assert gpu_store.status().leased_bytes == 0


def test_the_command_brings_a_checkpoint_onto_a_device(gpu_daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory, socket = make_checkpoint(), ["--socket", str(gpu_daemon.socket)]

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "serverless_triton.cli", "store", *arguments, *socket]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "copied in" in run("load", str(directory), "--device", GPU)
    assert "was on the GPU" in run("load", str(directory), "--device", GPU)
    assert "from gpu" in run("estimate", str(directory), "--device", GPU)
    assert f"  {directory}: ready, 0 leases" in run("status")


def test_progress_is_told_until_all_is_there(start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint) -> None:
    daemon = start_daemon("--gpu-bytes", str(64 * MEGABYTES), "--ssd-bytes-per-second", str(32 * MEGABYTES))
    directory = make_checkpoint(megabytes=24)
    told: list[tuple[int, int]] = []
    with daemon.connect() as store:
        attachment = store.attach(directory, device=GPU, progress=lambda done, total: told.append((done, total)))

    size_bytes = attachment.receipt.bytes
    assert told == sorted(told)
    assert told[0][0] < size_bytes
    assert {total for _, total in told} == {size_bytes}
    assert told[-1][0] == size_bytes


def test_a_device_that_is_not_there_is_unavailable(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    for device in ("cuda:77", "tpu"):
        with pytest.raises(DeviceUnavailable):
            gpu_store.attach(make_checkpoint(), device=device)


def test_an_invented_device_is_refused_and_leaves_no_trace(gpu_store: Store, make_checkpoint: MakeCheckpoint) -> None:
    directory, known = make_checkpoint(), _core.gpu_uuids()[0]
    for request in (
        AttachDevice(id=1000, path=str(directory), device="GPU-invented", session="s", progress=False),
        GetEstimate(id=1001, path=str(directory), device="GPU-invented"),
    ):
        with pytest.raises(DeviceUnavailable, match=known):
            gpu_store._ask(request, Estimated, None)

    assert gpu_store.status().devices == ()


def test_without_a_budget_nothing_stays_on_gpus(store: Store, make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(DeviceUnavailable, match="--gpu-bytes"):
        store.attach(make_checkpoint(), device=GPU)


def test_a_daemon_that_restarts_counts_what_clients_hold(gpu_daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    one, other = make_checkpoint("one", 40), make_checkpoint("other", 40)
    store = gpu_daemon.connect()
    held = dict(store.attach(one, device=GPU).tensors)
    os.kill(gpu_daemon.child(), 9)

    wait_until(lambda: _answers(store))
    assert on_gpu(store).held_bytes == 42 * MEGABYTES
    assert_equal(held, one)
    with pytest.raises(StoreFull):
        store.attach(other, device=GPU)

    held.clear()
    gc.collect()
    attachment = store.attach(other, device=GPU)
    assert on_gpu(store).held_bytes == 0
    assert_equal(dict(attachment.tensors), other)
    store.close()


def test_the_device_s_own_limit_is_a_typed_error(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_MEMORY_BYTES", str(8 * MEGABYTES))
    with start_daemon("--gpu-bytes", str(64 * MEGABYTES)).connect() as store:
        with pytest.raises(DeviceOutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
            store.attach(make_checkpoint("large", 20), device=GPU)

        assert store.attach(make_checkpoint("small"), device=GPU).receipt.copy_s > 0


@pytest.mark.parametrize("failure", ["copy:719:2", "cuMemcpyHtoDAsync:719:0", "cuMemExportToShareableHandle:999:1"])
def test_a_failing_device_fails_the_attach_and_not_the_store(
    start_daemon: StartDaemon,
    make_checkpoint: MakeCheckpoint,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    directory = make_checkpoint(megabytes=30)
    monkeypatch.setenv("EMULATED_CUDA_FAIL", failure)
    with start_daemon("--gpu-bytes", str(64 * MEGABYTES)).connect() as store:
        with pytest.raises(DeviceError, match="CUDA_ERROR"):
            store.attach(directory, device=GPU)

        attachment = store.attach(directory)
        assert_equal(dict(attachment.tensors), directory)


def test_late_copies_are_waited_for(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_COPY_DELAY_US", "20000")
    directory = make_checkpoint(megabytes=40)
    with start_daemon("--gpu-bytes", str(64 * MEGABYTES)).connect() as store:
        attachment = store.attach(directory, device=GPU)

        assert_equal(dict(attachment.tensors), directory)


def test_a_client_and_the_store_may_number_devices_differently(
    start_daemon: StartDaemon, make_checkpoint: MakeCheckpoint, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_DEVICES", "2")
    with start_daemon("--gpu-bytes", str(64 * MEGABYTES)).connect() as store:
        monkeypatch.setenv("EMULATED_CUDA_DEVICES", "1")
        monkeypatch.setenv("EMULATED_CUDA_FIRST_DEVICE", "1")
        command = [sys.executable, "-c", CLIENT, store._path, str(make_checkpoint())]
        done = subprocess.run(command, input="", capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stderr
        assert on_gpu(store).device.endswith("-000000000001")
        assert _core.gpu_uuids()[0].endswith("-000000000000")


@pytest.fixture
def emulated(cuda_driver: str) -> None:
    if "emulated" not in cuda_driver:
        pytest.skip("a real driver does not fail on demand")


def _answers(store: Store) -> bool:
    try:
        store.status()
    except StoreUnavailable:
        return False
    return True


CLIENT = """
import sys, torch
from serverless_triton.loader import Store
store = Store(sys.argv[1], connect_timeout_s=20)
attachment = store.attach(sys.argv[2], device="cuda:0")
print(attachment.tensors["weight"].sum(dtype=torch.int64).item(), flush=True)
sys.stdin.read()
"""
