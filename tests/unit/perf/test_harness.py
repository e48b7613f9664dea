"""Rivals are interleaved by seed, rounds are kept as they come, and only what can be trusted is recorded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perf import harness, machine
from perf.harness import (
    BenchmarkFailed,
    InvalidRound,
    Measure,
    Options,
    Shard,
    check_recordable,
    continued,
    order_of,
    run_benchmark,
)
from perf.page_cache import WrongResidency
from perf.results import Measurement, Run, read_run
from tests.unit.perf.runs import round_of, run_of

CLEAN = "0123456789abcdef"


@dataclass
class FakeBenchmark:
    """Three rivals that answer at once. `invalid` and `broken` say at which calls of "b" something goes wrong."""

    name: str = "fake"
    headline: str = "answer_s"
    full_rounds: int = 3
    packages: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    invalid: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    calls: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        yield {name: lambda name=name: self._answer(name) for name in "abc"}

    def documents(self, run: Run) -> Mapping[str, str]:
        return self.texts

    def _answer(self, name: str) -> Measurement:
        self.calls[name] += 1
        if name == "b" and self.calls[name] in self.invalid:
            raise InvalidRound("from the wrong tier")
        if name == "b" and self.calls[name] in self.broken:
            raise BenchmarkFailed("the server ended")
        return Measurement(figures={"answer_s": 0.1 * self.calls[name]})


@pytest.fixture(autouse=True)
def a_machine_at_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda _during_s: 0.0)
    monkeypatch.setattr(machine, "commit", lambda: CLEAN)
    monkeypatch.setattr(machine, "hardware", lambda: {"class": "2 cores"})
    monkeypatch.setattr(machine, "versions", lambda _packages: {})
    monkeypatch.setattr(harness, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")


def test_every_round_has_every_rival_in_its_own_order():
    run = read_run(run_benchmark(FakeBenchmark(), Options(rounds=8), "fake"))
    assert [set(r.measurements) for r in run.rounds] == [set("abc")] * 8
    assert [r.order for r in run.rounds] == [order_of("cab", 1, number) for number in range(8)]
    assert len({r.order for r in run.rounds}) > 1


def test_the_order_is_the_seeds():
    def orders(seed: int) -> list[tuple[str, ...]]:
        return [order_of("abc", seed, number) for number in range(8)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_an_ordinary_run_is_not_recorded(tmp_path: Path):
    file = run_benchmark(FakeBenchmark(), Options(), "fake")
    assert file.is_relative_to(tmp_path / "output" / "fake")
    assert not (tmp_path / "results").exists()


def test_a_full_run_from_a_clean_tree_is_recorded(tmp_path: Path):
    file = run_benchmark(FakeBenchmark(), Options(record=True), "fake")
    assert file.is_relative_to(tmp_path / "results" / "fake")
    assert len(read_run(file).rounds) == 3
    assert not list((tmp_path / "output").rglob("*.json"))


def test_documents_lie_beside_the_runs_file():
    texts = {".md": "| a table |", ".svg": "<svg/>"}
    file = run_benchmark(FakeBenchmark(texts=texts), Options(record=True), "fake")
    assert {suffix: file.with_suffix(suffix).read_text() for suffix in texts} == texts


def test_files_in_the_wrong_state_make_a_round_invalid(monkeypatch: pytest.MonkeyPatch):
    def cached(_benchmark: FakeBenchmark, _name: str) -> Measurement:
        raise WrongResidency("still cached")

    monkeypatch.setattr(FakeBenchmark, "_answer", cached)
    with pytest.raises(BenchmarkFailed, match="still cached"):
        run_benchmark(FakeBenchmark(), Options(), "fake")


@pytest.mark.parametrize("commit", ["unknown", f"{CLEAN}-dirty"])
def test_a_dirty_tree_is_not_recorded(commit: str):
    with pytest.raises(BenchmarkFailed, match="commit"):
        check_recordable(run_of(commit=commit), 9, 9)


def test_fewer_rounds_than_the_full_number_are_not_recorded():
    with pytest.raises(BenchmarkFailed, match="9"):
        run_benchmark(FakeBenchmark(full_rounds=9), Options(rounds=8, record=True), "fake")


def test_an_invalid_round_is_kept_and_repeated():
    run = read_run(run_benchmark(FakeBenchmark(invalid=frozenset({2})), Options(), "fake"))
    assert [r.number for r in run.rounds] == [0, 1, 1, 2]
    assert run.rounds[1].invalid == "b: from the wrong tier"
    assert [r.number for r in run.valid_rounds] == [0, 1, 2]


def test_a_round_that_stays_invalid_ends_the_run():
    with pytest.raises(BenchmarkFailed, match="wrong tier"):
        run_benchmark(FakeBenchmark(invalid=frozenset({1, 2, 3})), Options(), "fake")


def test_a_run_that_was_cut_goes_on_where_it_was(tmp_path: Path):
    with pytest.raises(BenchmarkFailed, match="the server ended"):
        run_benchmark(FakeBenchmark(broken=frozenset({3})), Options(seed=7), "fake")
    (cut,) = (tmp_path / "output").rglob("*.json")
    again = FakeBenchmark()
    run = read_run(run_benchmark(again, Options(resume=cut), "fake"))
    assert [r.number for r in run.rounds] == [0, 1, 2]
    assert again.calls["b"] == 1
    assert run.seed == 7
    assert [r.order for r in run.rounds] == [order_of("abc", 7, number) for number in range(3)]


@pytest.mark.parametrize(
    "changes",
    [{"benchmark": "other"}, {"commit": "beef"}, {"hardware_class": "1 core"}, {"versions": {"torch": "2.9"}}],
)
def test_a_run_goes_on_only_as_the_same_thing(changes: dict[str, object]):
    cut = run_of(round_of(0, stock=1.0))
    assert continued(cut, run_of()) == cut
    with pytest.raises(BenchmarkFailed, match="start anew"):
        continued(cut, run_of(**changes))


def test_shards_share_the_rounds_and_the_last_one_records(tmp_path: Path):
    options = Options(rounds=5, record=True)
    first = FakeBenchmark()
    partial = run_benchmark(first, Options(rounds=5, record=True, shard=Shard(index=0, count=2)), "fake")
    assert [r.number for r in read_run(partial).rounds] == [0, 2, 4]
    assert not (tmp_path / "results").exists()
    whole = run_benchmark(FakeBenchmark(), Options(**{**as_dict(options), "resume": partial}), "fake")
    assert sorted(r.number for r in read_run(whole).rounds) == [0, 1, 2, 3, 4]
    assert whole.is_relative_to(tmp_path / "results")


def as_dict(options: Options) -> dict[str, object]:
    return {name: getattr(options, name) for name in ("rounds", "seed", "record", "shard")}


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str):
    with pytest.raises(BenchmarkFailed, match="i/n"):
        Shard.parse(text)


def test_the_command_line_says_what_went_wrong(capsys: pytest.CaptureFixture[str]):
    assert harness.main(FakeBenchmark(broken=frozenset({1})), "perf.fake", []) == 1
    assert "the server ended" in capsys.readouterr().err
    assert harness.main(FakeBenchmark(), "perf.fake", ["--rounds", "1"]) == 0
