"""`python -m perf.gpu_check`: what a GPU's link gives, and how near to it loading comes, beside safetensors' own load.

A Llama-shaped checkpoint of random bytes (16 GB, or what --shape says) goes from DRAM and from a cold SSD onto the GPU
through the store, from the SSD through load_file, and by safetensors from the page cache and from the SSD. Every load
ends with all bytes on the device and one in STRIDE of them summed there, which must come to the same for all.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perf import harness, page_cache
from perf.harness import BenchmarkFailed, InvalidRound, Measure
from perf.loader.forms import LLAMA_1B, TINY, Shape, forms_in_cache
from perf.loader.store_process import running_store
from perf.results import Measurement, Run
from serverless_triton.loader import LoaderError, Store, _core, load_file

if TYPE_CHECKING:
    import torch

LLAMA_8B = Shape(name="llama-8b", layers=32, hidden=4096, intermediate=14336, key_value=1024, vocabulary=128256)
SHAPES = {shape.name: shape for shape in (LLAMA_8B, LLAMA_1B, TINY)}
DEVICE = "cuda:0"
STRIDE = 4097
# The link's own speed shows well before that much; more would only take pinned memory from others.
PINNED_BYTES = 4 << 30
ALIGNMENT_BYTES = 2 << 20

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCheck:
    """`shape` decides how many bytes are loaded, `form` which files they are in."""

    shape: Shape = LLAMA_8B
    name: str = "gpu_check"
    headline: str = "load_bytes_per_s"
    full_rounds: int = 5
    packages: tuple[str, ...] = ("safetensors",)

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        """Raises BenchmarkFailed where there is no GPU."""
        gpu = _gpu()
        checkpoint = forms_in_cache(self.shape, seed).path("single")
        file = next(checkpoint.glob("*.safetensors"))
        room_bytes = -(-file.stat().st_size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + ALIGNMENT_BYTES
        with (
            harness.scratch_folder() as folder,
            running_store(
                folder, pages="auto", dram_bytes=room_bytes, more_options=["--gpu-bytes", str(room_bytes)]
            ) as process,
            process.connect() as store,
        ):
            yield _Loads(gpu=gpu, store=store, checkpoint=checkpoint, file=file).measures()

    def documents(self, _run: Run) -> Mapping[str, str]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loads:
    """`sums` are those of the loads so far, which must be one and the same."""

    gpu: _core.GpuDevice
    store: Store
    checkpoint: Path
    file: Path
    sums: set[int] = field(default_factory=set)

    def measures(self) -> Mapping[str, Measure]:
        return {
            "pinned copy": self.pinned_copy,
            "ours, DRAM": self.ours_from_dram,
            "ours, SSD": self.ours_from_ssd,
            "ours, swap back": self.ours_swap_back,
            "load_file, SSD": self.load_file_from_ssd,
            "safetensors, page cache": self.safetensors_from_page_cache,
            "safetensors, SSD": self.safetensors_from_ssd,
        }

    def pinned_copy(self) -> Measurement:
        """Registered memory to the device, nothing else: the ceiling of all loads."""
        size_bytes = min(PINNED_BYTES, self.file.stat().st_size // ALIGNMENT_BYTES * ALIGNMENT_BYTES or ALIGNMENT_BYTES)
        memory = _core.Mapping.anonymous(size_bytes)
        memoryview(memory)[::4096] = bytes(size_bytes // 4096)  # every page is there
        target, registered = _core.DeviceMemory.allocate(self.gpu, size_bytes), _core.RegisteredMemory(memory)
        for _ in range(2):  # the first time registers the memory
            begin_s = time.perf_counter()
            copy = _core.GpuCopy(target, [0], registered)
            copy.copy(0, memory, [(0, size_bytes)], _core.ReadJob())
            copy.finish()
            seconds = time.perf_counter() - begin_s
        return _measurement(size_bytes, seconds, details={})

    def ours_from_dram(self) -> Measurement:
        self.store.evict(self.checkpoint)
        self.store.load(self.checkpoint)
        return self._attach("dram")

    def ours_from_ssd(self) -> Measurement:
        self.store.evict(self.checkpoint)
        self._empty_page_cache()
        return self._attach("ssd")

    def ours_swap_back(self) -> Measurement:
        self.store.load(self.checkpoint, device=DEVICE)
        return self._attach("gpu")

    def load_file_from_ssd(self) -> Measurement:
        self._empty_page_cache()
        return self._timed(lambda: load_file(self.checkpoint, device=DEVICE))

    def safetensors_from_page_cache(self) -> Measurement:
        page_cache.fill([self.file])
        return self._timed(self._safetensors)

    def safetensors_from_ssd(self) -> Measurement:
        self._empty_page_cache()
        return self._timed(self._safetensors)

    def _safetensors(self) -> Tensors:
        from safetensors.torch import load_file as safetensors_load_file

        tensors: Tensors = safetensors_load_file(self.file, device=_torch_device())
        return tensors

    def _attach(self, tier: str) -> Measurement:
        begin_s = time.perf_counter()
        attachment = self.store.attach(self.checkpoint, device=DEVICE)
        total = _sum(attachment.tensors)
        seconds = time.perf_counter() - begin_s
        self._compare(total)
        receipt = attachment.receipt
        if receipt.tier != tier:
            raise InvalidRound(f"the bytes came from {receipt.tier}, not from {tier}")
        details = {
            "sum": total,
            "queue_s": receipt.queue_s,
            "read_s": receipt.read_s,
            "copy_s": receipt.copy_s,
            "attach_s": receipt.attach_s,
            "verified": receipt.verified,
        }
        self.store.release(attachment)
        gc.collect()
        return _measurement(receipt.bytes, seconds, details)

    def _timed(self, load: Callable[[], Tensors]) -> Measurement:
        begin_s = time.perf_counter()
        tensors = load()
        total = _sum(tensors)
        seconds = time.perf_counter() - begin_s
        self._compare(total)
        return _measurement(self.file.stat().st_size, seconds, {"sum": total})

    def _compare(self, total: int) -> None:
        self.sums.add(total)
        if len(self.sums) > 1:
            raise BenchmarkFailed(f"loads differ in their bytes: sums {sorted(self.sums)}; one of them is broken")

    def _empty_page_cache(self) -> None:
        try:
            page_cache.empty([self.file])
        except page_cache.WrongResidency as error:
            raise InvalidRound(str(error)) from error


def _gpu() -> _core.GpuDevice:
    try:
        return _core.GpuDevice(0)
    except LoaderError as error:
        raise BenchmarkFailed(f"there is no GPU here that could be measured: {error}") from error


def _torch_device() -> str:
    """safetensors takes torch's word for it; with an emulated driver torch knows of no GPU."""
    import torch

    return DEVICE if torch.cuda.is_available() else "cpu"


def _sum(tensors: Tensors) -> int:
    """Of one byte in STRIDE, where the tensors are; it is done when this returns."""
    import torch

    sums = [tensor.reshape(-1).view(torch.uint8)[::STRIDE].sum(dtype=torch.int64) for tensor in tensors.values()]
    return int(torch.stack(sums).sum().item())


def _measurement(size_bytes: int, seconds: float, details: Mapping[str, object]) -> Measurement:
    return Measurement(figures={"load_s": seconds, "load_bytes_per_s": size_bytes / seconds}, details=details)


def main(arguments: Sequence[str] | None = None) -> int:
    """The harness's command line, and --shape."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m perf.gpu_check", add_help=False)
    parser.add_argument("--shape", choices=SHAPES, default=LLAMA_8B.name)
    given, others = parser.parse_known_args(arguments)
    return harness.main(GpuCheck(shape=SHAPES[given.shape]), "perf.gpu_check", others)


if __name__ == "__main__":
    sys.exit(main())
