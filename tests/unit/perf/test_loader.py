"""The pure parts of the loader benchmark: forms of the checkpoint, heats as messages, claims and tables from rounds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from perf.claims import CLAIMS, judge
from perf.loader import contender, rivals
from perf.loader.ceiling import DirectReader
from perf.loader.forms import LLAMA_1B, NAMES, TINY, Forms, divided, make_tensors
from perf.loader.heat import Heat, Outcome, Target, heat_from_json
from perf.loader.memory import private_memory
from perf.loader.pairs import PairedRow
from perf.loader.race import markdown as race_table
from perf.loader.report import documents, markdown
from perf.loader.track import measurement
from perf.results import Measurement, Round, Run
from tests.unit.perf.runs import run_of

GIGABYTE = 10**9
OUTCOME = Outcome(
    bytes=GIGABYTE,
    tensors=3,
    load_s=0.4,
    sum_s=0.1,
    plain_sum_s=None,
    checksum=7,
    cpu_s=0.3,
    peak_bytes=GIGABYTE,
    page_cache_bytes=0,
    cache_emptied_by="drop_caches",
    receipt=None,
)


def test_the_checkpoint_has_a_llamas_size():
    shapes = dict(LLAMA_1B.tensors())
    assert len(shapes) == 201
    assert 2.1e9 < sum(2 * torch.Size(shape).numel() for shape in shapes.values()) < 2.3e9


def test_tensors_are_their_seeds():
    first, again, other = (make_tensors(TINY, seed) for seed in (1, 1, 2))
    name = "lm_head.weight"
    assert torch.equal(first[name].view(torch.int16), again[name].view(torch.int16))
    assert not torch.equal(first[name].view(torch.int16), other[name].view(torch.int16))


def test_every_form_that_needs_no_peer_holds_the_same_bytes(tmp_path: Path):
    forms = Forms(folder=tmp_path, shape=TINY, seed=1)
    expected = {name: tensor.view(torch.int16) for name, tensor in make_tensors(TINY, 1).items()}
    for form in NAMES.keys() - {"tensorizer", "torch"}:
        found = {}
        for file in forms.files(form):
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name).view(torch.int16) for name in opened.keys()}  # noqa: SIM118
        assert found.keys() == expected.keys(), form
        assert all(torch.equal(found[name], expected[name]) for name in expected), form
    pickled = torch.load(forms.path("torch"), weights_only=True)
    assert all(torch.equal(pickled[name].view(torch.int16), expected[name]) for name in expected)


def test_a_form_is_made_once(tmp_path: Path):
    forms = Forms(folder=tmp_path, shape=TINY, seed=1)
    made_ns = forms.files("single")[0].stat().st_mtime_ns
    assert replace(forms).files("single")[0].stat().st_mtime_ns == made_ns


def test_shards_are_of_about_one_size_and_lose_nothing():
    tensors = make_tensors(TINY, 1)
    shards = divided(tensors, 3)
    assert [name for shard in shards for name in shard] == list(tensors)
    sizes = [sum(tensors[name].nbytes for name in shard) for shard in shards]
    assert max(sizes) < 2 * min(sizes)


def test_a_heat_survives_the_way_to_its_process():
    target = Target(path=Path("/a"), files=(Path("/a/b"), Path("/a/c")))
    heat = Heat(
        loader="attach", target=target, warm_up=target, cache="cold", arguments={"socket": "/s"}, store_processes=(1, 2)
    )
    assert heat_from_json(heat.to_json()) == heat


def test_the_sum_takes_one_byte_of_every_4_kib_of_each_tensor():
    tensors = {"a": torch.ones(4096 * 3 + 1, dtype=torch.uint8), "b": torch.full((8, 2), 2, dtype=torch.int16)}
    assert contender.strided_sum(tensors.values()) == 4 + 2
    assert contender.plain_sum_s(tensors) > 0


def test_the_plain_reader_reads_every_byte(tmp_path: Path):
    content = bytes(range(256)) * 100 + b"tail"
    (tmp_path / "file").write_bytes(content)
    reader = DirectReader(threads=3, chunk_bytes=8192, content=private_memory(len(content)))
    try:
        reader.read((tmp_path / "file",))
    except OSError:
        pytest.skip("this file system refuses O_DIRECT")
    assert reader.content[: len(content)] == content


def test_a_measurement_has_the_speed_until_all_was_summed():
    figures = measurement(OUTCOME, beyond_plain_sum_s=0.02).figures
    assert figures["elapsed_s"] == 0.5
    assert figures["bytes_per_s"] == 2 * GIGABYTE
    assert figures["beyond_plain_sum_s"] == 0.02


def loader_run(speeds: Mapping[str, float]) -> Run:
    """Two rounds with one GB at these GB/s; a premapped attach takes 15 ms."""
    extra = {
        rivals.PREMAPPED: {"plain_sum_s": 0.02, "beyond_plain_sum_s": 0.015},
    }
    measurements = {
        row: measurement(replace(OUTCOME, load_s=1 / speed, sum_s=0.0), **extra.get(row, {}))
        for row, speed in speeds.items()
    }
    return run_of(
        *(Round(number=number, order=tuple(speeds), measurements=measurements) for number in range(2)),
        benchmark="loader",
    )


ALL_ROWS = dict.fromkeys(rivals.TITLES, 2.0)


def test_every_loader_claim_follows_from_the_rows_that_there_are():
    claims = {claim["id"]: claim["value"] for claim in judge(loader_run(ALL_ROWS))}
    assert claims == pytest.approx(
        {
            "loader.cold_vs_safetensors": 1.0,
            "loader.warm_vs_best_copying_peer": 1.0,
            "loader.warm_huge_pages_vs_torch_mmap": 1.0,
            "loader.premapped_attach_s": 0.015,
        }
    )
    assert claims.keys() == {claim.id for claim in CLAIMS if claim.benchmark == "loader"}


def race_run(**pairs: tuple[float, float]) -> Run:
    """Rows by name, each with a rival's speed and ours beside it."""
    measurements = {
        row: Measurement(
            figures={"bytes_per_s": rival, "ours_bytes_per_s": ours, "elapsed_s": 1.0, "ours_elapsed_s": 2.0}
        )
        for row, (rival, ours) in pairs.items()
    }
    return run_of(Round(number=0, order=tuple(pairs), measurements=measurements), benchmark="loader-race")


RACE = race_run(
    **{
        "ceiling.4x8": (3.0, 3.0),
        "ceiling.8x8": (4.0, 2.0),
        "cold.runai_touched": (3.0, 2.0),
        "cold.tensorizer": (2.0, 9),
        "cold.ours_unhashed": (1.04, 1.0),
    }
)


def test_the_race_decides_what_is_close():
    claims = {claim["id"]: claim["value"] for claim in judge(RACE)}
    assert claims == pytest.approx(
        {"loader.cold_vs_ceiling": 0.5, "loader.cold_vs_best_peer": 2 / 3, "loader.checksum_cost": 0.04}
    )


def test_the_table_of_a_race_has_ours_beside_each_rival():
    assert "| plain O_DIRECT reader, 8 threads × 8 MiB | 1.000 | 2.000 | 0.50 |" in race_table(RACE)


def pairs(log: list[str], *ratios: float) -> PairedRow:
    """A row whose rival runs at 1 GB/s and ours at these, one after the other."""
    speeds = iter(ratios)

    def load(name: str, speed: float) -> Measurement:
        log.append(name)
        return Measurement(figures={"bytes_per_s": speed})

    return PairedRow(rival=lambda: load("rival", 1.0), ours=lambda: load("ours", next(speeds)), pairs=len(ratios))


def test_of_several_pairs_that_with_the_median_ratio_counts():
    measured = pairs([], 0.9, 1.1, 0.5)()

    assert measured.figures["ours_bytes_per_s"] == 0.9
    assert measured.details["all_bytes_per_s"] == [[1.0, 0.5], [1.0, 0.9], [1.0, 1.1]]


def test_the_rival_and_ours_take_turns_in_going_first():
    log = list[str]()
    pairs(log, 1.0, 1.0, 1.0)()

    assert log == ["rival", "ours", "ours", "rival", "rival", "ours"]


def test_ours_is_compared_with_the_best_of_each_kind():
    speeds = {**ALL_ROWS, "warm.torch_load": 0.5, "warm.runai": 0.4}
    speeds |= {row: 0.1 for row in rivals.WARM_COPYING_PEERS if row not in speeds or speeds[row] == 2.0}
    claims = {claim["id"]: claim["value"] for claim in judge(loader_run(speeds))}
    assert claims["loader.warm_vs_best_copying_peer"] == pytest.approx(4.0)


def test_loaders_that_map_the_file_copy_nothing():
    assert {row for row in rivals.WARM_COPYING_PEERS if "mmap" in row or "safetensors" in row} == {
        "warm.fastsafetensors"
    }


def test_the_documents_name_every_row():
    texts = documents(loader_run(ALL_ROWS))
    table = texts[".md"]
    assert all(title in table for title in rivals.TITLES.values())
    assert "20.0 ms of it is the sum's own time over plain memory, 15.0 ms is not" in table
    assert all(rivals.TITLES[row] in texts[".svg"] for row in ("cold.tensorizer", rivals.WARM_OURS_4K))


def test_the_table_has_the_fastest_first():
    table = markdown(loader_run({"cold.runai": 1.0, "cold.ours": 4.0, "cold.tensorizer": 2.0}))
    places = [table.index(rivals.TITLES[row]) for row in ("cold.ours", "cold.tensorizer", "cold.runai")]
    assert places == sorted(places)


def test_arenas_have_no_files_and_still_a_line():
    run = loader_run({})
    arena = Measurement(figures={"elapsed_s": 3.0, "bytes_per_s": 1e9, "cpu_s": 1.0, "peak_bytes": 3e9})
    round_ = Round(number=0, order=(rivals.ARENA_BEST,), measurements={rivals.ARENA_BEST: arena})
    assert "3.000 (3.000 – 3.000)" in markdown(replace(run, rounds=(round_,)))
