"""The loader benchmark end to end on a small checkpoint: real stores, processes and caches. No claim is about it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from perf import harness
from perf.harness import Measure
from perf.loader import rivals
from perf.loader.benchmark import LoaderBenchmark
from perf.loader.forms import TINY, Shape
from perf.loader.race import LoaderRace
from serverless_triton.backend.package_cache import CACHE_VARIABLE

# Large enough for several chunks.
SMALL: Shape = replace(TINY, name="small", hidden=512, intermediate=1408, key_value=128, vocabulary=16000)
SMALL_BYTES = sum(2 * prod(shape) for _, shape in SMALL.tensors())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For the checkpoints that the benchmarks make, and the stores that they run."""
    folder = tmp_path_factory.mktemp("loader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        patch.setattr(harness, "OUTPUT", folder)
        yield folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> Iterator[Mapping[str, Measure]]:
    with LoaderBenchmark(name="loader-test", shape=SMALL, needs_peers=False).rivals(1) as rivals_of_a_run:
        yield rivals_of_a_run


def test_cold_rows_are_measured_from_disk(rows: Mapping[str, Measure]) -> None:
    ceiling, ours, theirs = (rows[row]() for row in ("ceiling.4x8", rivals.COLD_OURS, rivals.COLD_SAFETENSORS))
    assert ours.details["receipt"]["tier"] == "ssd"
    assert ours.details["receipt"]["verified"]
    assert ours.details["tensors"] == theirs.details["tensors"] == len(list(SMALL.tensors()))
    assert min(m.figures["bytes_per_s"] for m in (ceiling, ours, theirs)) > 0
    assert ours.figures["peak_bytes"] > SMALL_BYTES


def test_warm_rows_attach_what_the_store_holds(rows: Mapping[str, Measure]) -> None:
    new, ahead = rows[rivals.WARM_OURS_4K](), rows[rivals.PREMAPPED_4K]()
    assert {new.details["receipt"]["tier"], ahead.details["receipt"]["tier"]} == {"dram"}
    total_s = ahead.figures["plain_sum_s"] + ahead.figures["beyond_plain_sum_s"]
    assert ahead.figures["elapsed_s"] == pytest.approx(total_s)


def test_an_arenas_start_is_a_row_of_its_own(rows: Mapping[str, Measure]) -> None:
    started = rows[rivals.ARENA_4K]()
    assert started.figures["page_bytes"] == 4096
    assert 0 < started.figures["listening_s"] <= started.figures["elapsed_s"]
    assert started.figures["peak_bytes"] > SMALL_BYTES


def test_a_race_has_ours_beside_a_plain_reader_and_beside_ours_without_hashes(folder: Path) -> None:
    with LoaderRace(name="race-test", shape=SMALL, needs_peers=False).rivals(1) as pairs:
        assert set(pairs) == {*rivals.FASTEST_CEILINGS, rivals.UNHASHED}
        measured = [pairs[row]() for row in ("ceiling.4x8", rivals.UNHASHED)]

    for one in measured:
        assert min(one.figures["bytes_per_s"], one.figures["ours_bytes_per_s"]) > 0
        assert one.details["ours"]["receipt"]["verified"]
    assert not measured[1].details["receipt"]["verified"]
