"""The course that every contender runs: the same tensors in the form it reads, and a check that it read just those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from perf import machine
from perf.harness import BenchmarkFailed, InvalidRound
from perf.loader.ceiling import aligned
from perf.loader.forms import Forms
from perf.loader.heat import WRONG_STATE_STATUS, Cache, Heat, Outcome, Target
from perf.loader.rivals import CEILINGS, WARM_TORCH_MMAP, Peer
from perf.results import Measurement

CONTENDER = "perf.loader.contender"
TIMEOUT_S = 300.0
# A peer's tensors, and the page cache or the buffers that it reads through.
TOUCHED_COPIES = 2.1
# A virtual machine's host makes a fifth to a third of all attaches take three times as long (docs/architecture.md).
WARM_LOADS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """`checksum` is what the official reader's tensors sum up to. `tiny` is what processes warm up with."""

    forms: Forms
    tiny: Forms
    checksum: int

    def run(self, loader: str, form: str, cache: Cache, **more: Any) -> Outcome:
        """Raises BenchmarkFailed, also where a loader gave other bytes; InvalidRound."""
        outcome = run_contender(self._heat(loader, form, cache, **more))
        if outcome.tensors and outcome.checksum != self.checksum:
            raise BenchmarkFailed(f"{loader} summed up to {outcome.checksum} instead of {self.checksum}")
        return outcome

    def _heat(self, loader: str, form: str, cache: Cache, **more: Any) -> Heat:
        return Heat(
            loader=loader, target=target(self.forms, form), warm_up=target(self.tiny, form), cache=cache, **more
        )

    def touched_bytes(self, form: str) -> int:
        return int(TOUCHED_COPIES * sum(file.stat().st_size for file in self.forms.files(form)))

    def peer(self, peer: Peer, cache: Cache) -> Measurement:
        once = partial(self._peer, peer, cache)
        return median_of(once, WARM_LOADS) if is_close_race(peer, cache) else once()

    def _peer(self, peer: Peer, cache: Cache) -> Measurement:
        touch_bytes = self.touched_bytes(peer.form) if peer.touched else 0
        settings = {"arguments": peer.arguments, "environment": peer.environment, "touch_bytes": touch_bytes}
        return measurement(self.run(peer.loader, peer.form, cache, **settings))

    def ceiling(self, row: str) -> Measurement:
        threads, chunk_bytes = CEILINGS[row]
        size_bytes = sum(aligned(file.stat().st_size) for file in self.forms.files("single"))
        arguments = {"threads": threads, "chunk_bytes": chunk_bytes, "size_bytes": size_bytes}
        return measurement(self.run("direct_reader", "single", "cold", arguments=arguments))


def checked_by_the_official_reader(forms: Forms, tiny: Forms) -> Track:
    """A track whose checksum safetensors gave."""
    unchecked = Heat(loader="safetensors", target=target(forms, "single"), warm_up=target(tiny, "single"), cache="any")
    return Track(forms=forms, tiny=tiny, checksum=run_contender(unchecked).checksum)


def target(forms: Forms, form: str) -> Target:
    return Target(path=forms.path(form), files=forms.files(form))


def measurement(outcome: Outcome, **more: float) -> Measurement:
    """`more`: further figures of the row."""
    figures = {
        "elapsed_s": outcome.elapsed_s,
        "bytes_per_s": outcome.bytes / outcome.elapsed_s,
        "load_s": outcome.load_s,
        "sum_s": outcome.sum_s,
        "cpu_s": outcome.cpu_s,
        "peak_bytes": outcome.peak_bytes,
        "page_cache_bytes": outcome.page_cache_bytes,
    }
    return Measurement(figures={**figures, **more}, details=asdict(outcome))


def is_close_race(peer: Peer, cache: Cache) -> bool:
    return f"{cache}.{peer.name}" == WARM_TORCH_MMAP


def median_of(measure: Callable[[], Measurement], times: int) -> Measurement:
    """The one with the median time of an odd number of loads one after another; its details hold all their times."""
    measured = sorted((measure() for _ in range(times)), key=lambda one: one.figures["elapsed_s"])
    middle = measured[times // 2]
    return replace(middle, details={**middle.details, "all_elapsed_s": [one.figures["elapsed_s"] for one in measured]})


def run_contender(heat: Heat) -> Outcome:
    """In a process of its own. Raises BenchmarkFailed, and InvalidRound where its files were not where they should."""
    command = [sys.executable, "-m", CONTENDER, heat.to_json()]
    environment = {**os.environ, **heat.environment}
    try:
        finished = subprocess.run(
            command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"{heat.loader} took longer than {TIMEOUT_S:.0f} s") from error
    if finished.returncode == WRONG_STATE_STATUS:
        raise InvalidRound(finished.stderr.strip())
    if finished.returncode:
        raise BenchmarkFailed(f"{heat.loader} failed ({finished.returncode}): {_last_lines(finished.stderr)}")
    return Outcome(**json.loads(finished.stdout.splitlines()[-1]))


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-5:])
