"""`python -m perf.loader.race`: ours from disk, in turns with plain readers, the fastest peers and ours without hashes.

A virtual machine's disk changes its speed by a third from one second to the next. Each row is therefore a pair, a rival
and ours right after each other, and the claims are medians of the pairs' ratios.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from perf import harness, page_cache
from perf.formulas import PairedRatioToBest, median_of
from perf.harness import BenchmarkFailed, Measure
from perf.loader import contender
from perf.loader.benchmark import ARENA_SPARE_BYTES, BEST_PAGES, CHECKPOINT_SEED
from perf.loader.ceiling import DirectReader, aligned
from perf.loader.forms import LLAMA_1B, TINY, Shape, forms_in_cache
from perf.loader.loaders import missing_packages
from perf.loader.memory import private_memory
from perf.loader.ours import OurRows
from perf.loader.pairs import PairedRow
from perf.loader.rivals import CEILINGS, FASTEST_CEILINGS, FASTEST_COLD_PEERS, PEERS, TITLES, UNHASHED
from perf.loader.store_process import running_store
from perf.loader.track import checked_by_the_official_reader
from perf.results import Measurement, Round, Run

# A pair takes a few seconds; one with a peer half a minute.
CLOSE_PAIRS = 3
COLUMNS = "| | s | ours beside it, s | ours is so many times as fast |\n|---|---|---|---|"
RACING_PEERS = tuple(peer for peer in PEERS if f"cold.{peer.name}" in FASTEST_COLD_PEERS)
RACING_ROWS = (*FASTEST_CEILINGS, *FASTEST_COLD_PEERS, UNHASHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRace:
    """Implements harness.Benchmark. `needs_peers`: without them a run would not say what the claims compare."""

    name: str = "loader-race"
    headline: str = "elapsed_s"
    full_rounds: int = 10
    packages: tuple[str, ...] = ("safetensors", *sorted({peer.package for peer in RACING_PEERS}))
    shape: Shape = LLAMA_1B
    needs_peers: bool = True

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        if self.needs_peers and (missing := missing_packages()):
            raise BenchmarkFailed(f"{', '.join(missing)} not installed: `make peers` installs them")
        forms, tiny = (forms_in_cache(shape, CHECKPOINT_SEED) for shape in (self.shape, TINY))
        track = checked_by_the_official_reader(forms, tiny)
        dram_bytes = sum(file.stat().st_size for file in forms.files("single")) + ARENA_SPARE_BYTES
        with (
            harness.scratch_folder() as folder,
            running_store(folder, pages=BEST_PAGES, dram_bytes=dram_bytes) as store,
        ):
            rows = OurRows(track=track, store=store)
            ours = partial(rows.cold, "single")
            readers = plain_readers(forms.files("single"))
            peers = {
                f"cold.{peer.name}": partial(track.peer, peer, "cold") for peer in RACING_PEERS if self.needs_peers
            }
            yield {
                UNHASHED: PairedRow(rival=rows.unhashed, ours=ours, pairs=CLOSE_PAIRS),
                **{row: PairedRow(rival=reader, ours=ours, pairs=CLOSE_PAIRS) for row, reader in readers.items()},
                **{row: PairedRow(rival=peer, ours=ours, pairs=1) for row, peer in peers.items()},
            }

    def documents(self, run: Run) -> Mapping[str, str]:
        return {".md": markdown(run)}


def plain_readers(files: tuple[Path, ...]) -> Mapping[str, Measure]:
    """By row. They share memory that stays theirs; it is touched before each read, and summed after it."""
    size_bytes = sum(aligned(file.stat().st_size) for file in files)
    memory = private_memory(size_bytes)
    content = torch.frombuffer(memory, dtype=torch.uint8)

    def read(threads: int, chunk_bytes: int) -> Measurement:
        page_cache.empty(files)
        reader = DirectReader(threads=threads, chunk_bytes=chunk_bytes, content=memory)
        begin_s = time.perf_counter()
        reader.read(files)
        contender.strided_sum([content])
        elapsed_s = time.perf_counter() - begin_s
        return Measurement(figures={"elapsed_s": elapsed_s, "bytes_per_s": size_bytes / elapsed_s})

    return {row: partial(read, *CEILINGS[row]) for row in FASTEST_CEILINGS}


def markdown(run: Run) -> str:
    """A line for every rival: medians over the valid rounds, and that of the rounds' ratios."""
    rounds = run.valid_rounds
    head = f"{run.started_at}, {run.hardware_class}, {len(rounds)} rounds, seed {run.seed}, at {run.commit}"
    return "\n".join([head, "", COLUMNS, *(_line(rounds, row) for row in RACING_ROWS if _ran(rounds, row))]) + "\n"


def _ran(rounds: Sequence[Round], row: str) -> bool:
    return any(row in round_.measurements for round_ in rounds)


def _line(rounds: Sequence[Round], row: str) -> str:
    ratio = PairedRatioToBest(of="ours_bytes_per_s", to="bytes_per_s", rows=(row,)).value(rounds) or 0.0
    rival_s, ours_s = (median_of(rounds, row, metric) or 0.0 for metric in ("elapsed_s", "ours_elapsed_s"))
    return f"| {TITLES[row]} | {rival_s:.3f} | {ours_s:.3f} | {ratio:.2f} |"


if __name__ == "__main__":
    sys.exit(harness.main(LoaderRace(), "perf.loader.race"))
