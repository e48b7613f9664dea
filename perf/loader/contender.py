"""One timed load in a process of its own: `python -m perf.loader.contender HEAT`, its outcome on standard output.

Imports and the load of a tiny checkpoint come before the clock, so that what is imported or started on first use counts
for nobody. The clock runs from the call until one byte of every 4 KB of every tensor was summed: then all bytes are in
memory, whoever brought them there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np
import torch

from perf import page_cache, processes
from perf.loader.heat import WRONG_STATE_STATUS, Heat, Outcome, heat_from_json
from perf.loader.loaders import LOADERS, Load, Loaded
from perf.loader.memory import private_memory, touched

STRIDE_BYTES = 4096
# What touching free memory leaves to everybody else.
SPARED_BYTES = 2 << 30
PLAIN_SUMS = 5


def main(heat: Heat) -> Outcome:
    """Raises page_cache.WrongResidency."""
    load = LOADERS[heat.loader](**heat.arguments)
    strided_sum(load(heat.warm_up).tensors.values())
    emptied_by = prepare(heat)
    return timed(heat, load, emptied_by)


def prepare(heat: Heat) -> str | None:
    """The page cache and the free memory as the heat has them; returns how the cache was emptied."""
    emptied_by = None
    if heat.cache == "cold":
        emptied_by = page_cache.empty(heat.target.files)
    if heat.cache == "warm":
        page_cache.fill(heat.target.files)
    touch_free_memory(heat.touch_bytes)
    if heat.cache == "warm":
        page_cache.fill(heat.target.files)  # taking memory may have cost some of it
    processes.reset_peak()
    return emptied_by


def touch_free_memory(size_bytes: int) -> None:
    """Takes memory, touches it and gives it back: in a virtual machine the first touch of idle memory is slow."""
    size_bytes = min(size_bytes, processes.available_bytes() - SPARED_BYTES)
    if size_bytes <= 0:
        return
    touched(private_memory(size_bytes)).close()


def timed(heat: Heat, load: Load, emptied_by: str | None) -> Outcome:
    cpu_before_s = _cpu_s(heat)
    begin_s = time.perf_counter()
    loaded = load(heat.target)
    loaded_s = time.perf_counter()
    checksum = strided_sum(loaded.tensors.values())
    summed_s = time.perf_counter()
    spent_s = _cpu_s(heat) - cpu_before_s
    return Outcome(
        bytes=_bytes_of(loaded) or sum(file.stat().st_size for file in heat.target.files),
        tensors=len(loaded.tensors),
        load_s=loaded_s - begin_s,
        sum_s=summed_s - loaded_s,
        checksum=checksum,
        cpu_s=spent_s,
        peak_bytes=processes.peak_bytes() + sum(map(processes.private_bytes, heat.store_processes)),
        page_cache_bytes=sum(map(page_cache.resident_bytes, heat.target.files)),
        plain_sum_s=plain_sum_s(loaded.tensors) if heat.sum_plain else None,
        cache_emptied_by=emptied_by,
        receipt=loaded.receipt,
    )


def strided_sum(tensors: Iterable[torch.Tensor]) -> int:
    return sum(_strided_sum(tensor.reshape(-1).view(torch.uint8).numpy()) for tensor in tensors)


def _strided_sum(content: np.ndarray) -> int:
    return int(content[::STRIDE_BYTES].sum(dtype=np.uint64))


def plain_sum_s(tensors: Mapping[str, torch.Tensor]) -> float:
    """The fastest of a few sums over copies in private memory of 2 MB pages: the sum's own time."""
    ends = np.cumsum([tensor.nbytes for tensor in tensors.values()])
    plain = np.split(np.frombuffer(private_memory(int(ends[-1])), dtype=np.uint8, count=int(ends[-1])), ends[:-1])
    for copy, tensor in zip(plain, tensors.values(), strict=True):
        copy[:] = tensor.reshape(-1).view(torch.uint8).numpy()
    return min(_sum_s(plain) for _ in range(PLAIN_SUMS))


def _sum_s(contents: Iterable[np.ndarray]) -> float:
    begin_s = time.perf_counter()
    for content in contents:
        _strided_sum(content)
    return time.perf_counter() - begin_s


def _cpu_s(heat: Heat) -> float:
    return processes.cpu_s((os.getpid(), *heat.store_processes))


def _bytes_of(loaded: Loaded) -> int:
    return sum(tensor.nbytes for tensor in loaded.tensors.values())


if __name__ == "__main__":
    try:
        outcome = main(heat_from_json(sys.argv[1]))
    except page_cache.WrongResidency as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG_STATE_STATUS)
    print(json.dumps(asdict(outcome)), flush=True)
    os._exit(0)  # taking tensors down is nobody's load
