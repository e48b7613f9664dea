"""Runs a benchmark: rivals interleaved within each round, raw rounds kept as they come, a table at the end.

The file of a run is whole after every round, so a run that was cut goes on with `--resume`. Shards (`SHARD=i/n`) take
every n-th round; resuming one shard's file as another appends to it. Recording moves a complete run to perf/results.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from perf import machine
from perf.claims import RESULTS, judge
from perf.page_cache import WrongResidency
from perf.results import Measurement, Round, Run, UnreadableRun, read_run, summarize, to_json, write_json
from serverless_triton.backend.errors import BackendError
from serverless_triton.cli.local_cluster import ClusterEnded
from serverless_triton.cli.stock_triton import StockTritonFailed
from serverless_triton.loader import LoaderError

TABLE = ".md"
OUTPUT = machine.ROOT / "build" / "perf"
SHARD_VARIABLE = "SHARD"
DEFAULT_SEED = 1
# A rival must not begin while the one before it still winds down.
SETTLE_S = 1.0
MAX_ATTEMPTS = 3

Measure = Callable[[], Measurement]


class BenchmarkFailed(Exception):
    """A benchmark cannot go on, or must not be recorded; the message says what to do."""


class InvalidRound(Exception):
    """A rival was not measured under the conditions that the benchmark is about; the round is repeated."""


class Benchmark(Protocol):
    """What is compared. `headline` is the figure shown while it runs."""

    @property
    def name(self) -> str: ...
    @property
    def headline(self) -> str: ...
    @property
    def full_rounds(self) -> int:
        """How many rounds a recorded run has, at least."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions matter besides the project's own."""

    def rivals(self, seed: int) -> AbstractContextManager[Mapping[str, Measure]]:
        """Everything that is compared, ready to be measured any number of times; nothing is left of it afterwards."""

    def documents(self, run: Run) -> Mapping[str, str]:
        """What is to lie beside the run's file, by suffix: a table as ".md", a plot as ".svg"; maybe nothing."""


FAILURES = (BenchmarkFailed, UnreadableRun, ClusterEnded, StockTritonFailed, BackendError, LoaderError)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """On the clone's own disk, not in /tmp, which may be memory; removed at the end."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=OUTPUT) as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Takes the rounds whose number leaves `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n". Raises BenchmarkFailed."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise BenchmarkFailed(f"{SHARD_VARIABLE}={text!r}; use i/n with i from 0 to n - 1")
        return cls(index=int(index), count=int(count))

    def takes(self, number: int) -> bool:
        return number % self.count == self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is run, and what becomes of it. `rounds` None: the benchmark's full number."""

    rounds: int | None = None
    seed: int = DEFAULT_SEED
    record: bool = False
    resume: Path | None = None
    shard: Shard = Shard()


def main(benchmark: Benchmark, module: str, arguments: Sequence[str] | None = None) -> int:
    """A benchmark's command line; `module` is what follows `python -m`, a subcommand after it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _termination_unwinds():
            run_benchmark(
                benchmark, parse(arguments, module), shlex.join(["python", "-m", *module.split(), *arguments])
            )
    except FAILURES as error:
        print(f"{module}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """SIGTERM ends us as an exception does, so that rivals leave nothing behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: Sequence[str], module: str) -> Options:
    """Raises BenchmarkFailed for a shard that is none; leaves by SystemExit for other mistakes, as argparse does."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--rounds", type=_positive, help="default: as many as a recorded run needs")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the order within rounds, and of workloads")
    parser.add_argument("--record", action="store_true", help="keep the run in perf/results; needs a clean tree")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with a run that was cut (its seed counts)")
    given = parser.parse_args(arguments)
    return Options(**vars(given), shard=Shard.parse(os.environ.get(SHARD_VARIABLE, "0/1")))


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def run_benchmark(benchmark: Benchmark, options: Options, command: str) -> Path:
    """Measures the rounds that are missing and returns the run's file. Raises BenchmarkFailed, UnreadableRun."""
    rounds = options.rounds or benchmark.full_rounds
    run = _begin(benchmark, options, command)
    if options.record:
        check_recordable(run, rounds, benchmark.full_rounds)
    file = options.resume or OUTPUT / run.benchmark / f"{run.stamp}.json"
    with benchmark.rivals(run.seed) as rivals:
        for number in missing_rounds(run, rounds, options.shard):
            run = _measure_until_valid(benchmark, run, number, rivals, file)
    documents = benchmark.documents(run)
    print(documents.get(TABLE) or table(run))
    print("\n".join(verdict_lines(run)))
    if missing := missing_rounds(run, rounds, Shard()):
        print(f"{len(missing)} of {rounds} rounds are missing; other shards go on with --resume {file}")
        return file
    return _finish(_record(run, file) if options.record else file, documents)


def _begin(benchmark: Benchmark, options: Options, command: str) -> Run:
    fresh = Run(
        benchmark=benchmark.name,
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=machine.commit(),
        command=command,
        seed=options.seed,
        hardware=machine.hardware(),
        versions=machine.versions(benchmark.packages),
    )
    return continued(read_run(options.resume), fresh) if options.resume else fresh


def continued(cut: Run, fresh: Run) -> Run:
    """The run that was cut, if what would go on is the same thing. Raises BenchmarkFailed."""
    for name in ("benchmark", "commit", "hardware_class", "versions"):
        before, now = getattr(cut, name), getattr(fresh, name)
        if before != now:
            raise BenchmarkFailed(f"the run to resume has {name} {before}, but this would go on with {now}; start anew")
    return cut


def check_recordable(run: Run, rounds: int, full_rounds: int) -> None:
    """Raises BenchmarkFailed where others could not repeat or trust the run."""
    if run.commit == "unknown" or run.commit.endswith("-dirty"):
        raise BenchmarkFailed(f"the tree is at {run.commit}; commit what a recorded run should be made from")
    if rounds < full_rounds:
        raise BenchmarkFailed(f"{rounds} rounds are not enough to record; {run.benchmark} needs {full_rounds}")


def missing_rounds(run: Run, rounds: int, shard: Shard) -> list[int]:
    done = {round_.number for round_ in run.valid_rounds}
    return [number for number in range(rounds) if shard.takes(number) and number not in done]


def order_of(rivals: Sequence[str], seed: int, number: int) -> tuple[str, ...]:
    """The same for the same seed and round, in whatever order the rivals were given and wherever a run was cut."""
    order = sorted(rivals)
    random.Random(f"{seed}/{number}").shuffle(order)
    return tuple(order)


def _measure_until_valid(benchmark: Benchmark, run: Run, number: int, rivals: Mapping[str, Measure], file: Path) -> Run:
    for _ in range(MAX_ATTEMPTS):
        round_ = _measure_round(rivals, order_of(list(rivals), run.seed, number), number, benchmark.headline)
        run = run.and_round(round_)
        write_json(file, to_json(run, judge(run)))
        if round_.invalid is None:
            return run
    raise BenchmarkFailed(f"round {number} was invalid {MAX_ATTEMPTS} times: {round_.invalid}; rounds are in {file}")


def _measure_round(rivals: Mapping[str, Measure], order: Sequence[str], number: int, headline: str) -> Round:
    measurements: dict[str, Measurement] = {}
    round_ = Round(number=number, order=tuple(order), measurements=measurements)
    for name in order:
        busy = machine.busy_share(SETTLE_S)
        try:
            measured = rivals[name]()
        except (InvalidRound, WrongResidency) as error:
            print(f"round {number + 1}  {name}: invalid, {error}", flush=True)
            return replace(round_, invalid=f"{name}: {error}")
        measurements[name] = replace(measured, figures={**measured.figures, "busy_before_share": busy})
        print(f"round {number + 1}  {name:<24} {headline} {measured.figures[headline]:.3f}", flush=True)
    return round_


def _record(run: Run, file: Path) -> Path:
    recorded = RESULTS / run.benchmark / f"{run.stamp}.json"
    write_json(recorded, to_json(run, judge(run)))
    file.unlink()
    return recorded


def _finish(file: Path, documents: Mapping[str, str]) -> Path:
    for suffix, text in documents.items():
        file.with_suffix(suffix).write_text(text)
    print(f"written to {file.relative_to(machine.ROOT) if file.is_relative_to(machine.ROOT) else file}")
    return file


def table(run: Run) -> str:
    """The summary of one run, for a terminal."""
    rows = [("row", "metric", "median", "p99", "n", "unit")]
    rows += [
        (row.row, row.metric, f"{row.median:.4g}", f"{row.p99:.4g}", str(row.n), row.unit)
        for row in summarize(run.valid_rounds)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def verdict_lines(run: Run) -> Iterator[str]:
    for claim in judge(run):
        mark = "holds" if claim["holds"] else "falls short"
        yield f"{claim['id']}: {claim['value']:.3g}, goal {claim['goal']:.3g}: {mark} in this run"
