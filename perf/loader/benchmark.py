"""Loading 2.2 GB from disk and from memory: ours and every peer once a round, each in a process of its own.

Our stores run for the whole benchmark, as they do on a node; how long their arenas take to come up is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from perf import harness
from perf.harness import BenchmarkFailed, Measure
from perf.loader import report, rivals
from perf.loader.forms import LLAMA_1B, TINY, Shape, forms_in_cache
from perf.loader.heat import Cache
from perf.loader.loaders import PEER_PACKAGES, missing_packages
from perf.loader.memory import HUGE_PAGE_BYTES
from perf.loader.ours import OurRows
from perf.loader.rivals import PEERS, Peer
from perf.loader.store_process import StoreProcess, running_store
from perf.loader.track import Track, checked_by_the_official_reader, measurement
from perf.results import Measurement, Run

# The checkpoint is the same for all runs; a run's seed decides the order.
CHECKPOINT_SEED = 1
# An arena holds one image, whatever its form, and the tiny one that processes warm up with.
ARENA_SPARE_BYTES = 256 << 20
OUR_FORMS = ("single", "unhashed", "sharded", "repacked")
BEST_PAGES, SMALL_PAGES = "auto", "4k"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderBenchmark:
    """`needs_peers`: without all of them a run would not say what the claims compare."""

    name: str = "loader"
    headline: str = "elapsed_s"
    full_rounds: int = 5
    packages: tuple[str, ...] = ("safetensors", *PEER_PACKAGES)
    shape: Shape = LLAMA_1B
    needs_peers: bool = True

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        peers = self._peers()
        forms, tiny = (forms_in_cache(shape, CHECKPOINT_SEED) for shape in (self.shape, TINY))
        for form in sorted({*OUR_FORMS, *(peer.form for peer in peers)}):
            print(f"{form}: {forms.path(form)}, {tiny.path(form)}", flush=True)
        track = checked_by_the_official_reader(forms, tiny)
        dram_bytes = sum(file.stat().st_size for file in forms.files("single")) + ARENA_SPARE_BYTES
        with ExitStack() as stack:
            folder = stack.enter_context(harness.scratch_folder())
            best, small = (
                stack.enter_context(running_store(folder / pages, pages=pages, dram_bytes=dram_bytes))
                for pages in (BEST_PAGES, SMALL_PAGES)
            )
            yield {
                **{row: partial(track.ceiling, row) for row in rivals.CEILINGS},
                **_peer_rows(track, peers),
                **_our_rows(track, best, small),
                **_arena_rows(folder, dram_bytes),
            }

    def documents(self, run: Run) -> Mapping[str, str]:
        return report.documents(run)

    def _peers(self) -> Sequence[Peer]:
        missing = missing_packages()
        if missing and self.needs_peers:
            raise BenchmarkFailed(f"{', '.join(missing)} not installed: `make peers` installs them")
        if missing:
            print(f"without {', '.join(missing)}, which `make peers` would install")
        return [peer for peer in PEERS if peer.package not in missing]


def _peer_rows(track: Track, peers: Sequence[Peer]) -> Mapping[str, Measure]:
    states: tuple[Cache, ...] = ("cold", "warm")
    return {f"{state}.{peer.name}": partial(track.peer, peer, state) for peer in peers for state in states}


def _our_rows(track: Track, best: StoreProcess, small: StoreProcess) -> Mapping[str, Measure]:
    on_best, on_small = (OurRows(track=track, store=store) for store in (best, small))
    rows: dict[str, Measure] = {
        rivals.COLD_OURS: partial(on_best.cold, "single"),
        rivals.COLD_OURS_SHARDED: partial(on_best.cold, "sharded"),
        rivals.COLD_OURS_REPACKED: partial(on_best.cold, "repacked"),
        rivals.WARM_OURS_4K: on_small.warm,
        rivals.PREMAPPED_4K: on_small.premapped,
        rivals.COLD_LOAD_FILE: partial(_load_file, track, "cold"),
        rivals.WARM_LOAD_FILE: partial(_load_file, track, "warm"),
    }
    if best.page_bytes < HUGE_PAGE_BYTES:
        print(f"no rows with 2 MB pages: the store got {best.pages} with {best.page_bytes} bytes a page")
        return rows
    return {**rows, rivals.WARM_OURS_HUGE: on_best.warm, rivals.PREMAPPED: on_best.premapped}


def _load_file(track: Track, cache: Cache) -> Measurement:
    return measurement(track.run("load_file", "single", cache, touch_bytes=track.touched_bytes("single")))


def _arena_rows(folder: Path, dram_bytes: int) -> Mapping[str, Measure]:
    numbers = count()

    def start(pages: str) -> Measurement:
        with running_store(folder / f"arena-{next(numbers)}", pages=pages, dram_bytes=dram_bytes) as store:
            return _started(store)

    return {rivals.ARENA_BEST: partial(start, BEST_PAGES), rivals.ARENA_4K: partial(start, SMALL_PAGES)}


def _started(store: StoreProcess) -> Measurement:
    figures = {
        "elapsed_s": store.prefaulted_s,
        "listening_s": store.listening_s,
        "bytes_per_s": store.arena_bytes / store.prefaulted_s,
        "cpu_s": store.cpu_s(),
        "peak_bytes": store.arena_bytes,
        "page_bytes": store.page_bytes,
    }
    return Measurement(figures=figures, details={"pages": store.pages})
