"""`python -m perf.loader.race`: from disk, ours against what is closest to it, in rounds of a minute.

Virtual machines change their speed within minutes, by more than these rivals differ. In short rounds they meet the same
machine, and the claims are medians of the rounds' ratios.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from perf import harness
from perf.harness import BenchmarkFailed, Measure
from perf.loader import report, rivals
from perf.loader.benchmark import ARENA_SPARE_BYTES, BEST_PAGES, CHECKPOINT_SEED
from perf.loader.forms import LLAMA_1B, TINY, Shape, forms_in_cache
from perf.loader.loaders import missing_packages
from perf.loader.ours import OurRows
from perf.loader.rivals import FASTEST_COLD_PEERS, PEERS
from perf.loader.store_process import running_store
from perf.loader.track import checked_by_the_official_reader
from perf.results import Run

RACING_PEERS = tuple(peer for peer in PEERS if f"cold.{peer.name}" in FASTEST_COLD_PEERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRace:
    """Implements harness.Benchmark."""

    name: str = "loader-race"
    headline: str = "elapsed_s"
    full_rounds: int = 9
    packages: tuple[str, ...] = ("safetensors", *sorted({peer.package for peer in RACING_PEERS}))
    shape: Shape = LLAMA_1B

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        if missing := missing_packages():
            raise BenchmarkFailed(f"{', '.join(missing)} not installed: `make peers` installs them")
        forms, tiny = (forms_in_cache(shape, CHECKPOINT_SEED) for shape in (self.shape, TINY))
        track = checked_by_the_official_reader(forms, tiny)
        dram_bytes = sum(file.stat().st_size for file in forms.files("single")) + ARENA_SPARE_BYTES
        with (
            harness.scratch_folder() as folder,
            running_store(folder, pages=BEST_PAGES, dram_bytes=dram_bytes) as store,
        ):
            ours = OurRows(track=track, store=store)
            yield {
                rivals.COLD_OURS: partial(ours.cold, "single"),
                **{row: partial(track.ceiling, row) for row in rivals.CEILINGS},
                **{f"cold.{peer.name}": partial(track.peer, peer, "cold") for peer in RACING_PEERS},
            }

    def documents(self, run: Run) -> Mapping[str, str]:
        return report.documents(run)


if __name__ == "__main__":
    sys.exit(harness.main(LoaderRace(), "perf.loader.race"))
