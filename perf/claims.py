"""What this project promises, as data, and whether the recorded runs keep it.

A claim is the median of the last three recorded runs of a hardware class, each computed from its raw rounds. How that
is shown is `claims_report`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from perf.engine import rivals as engine_rivals
from perf.formulas import (
    CappedShare,
    Formula,
    GeometricRatioToBest,
    Largest,
    Median,
    MedianRatio,
    MetricRatio,
    PairedDifference,
    PairedOverhead,
    PairedRatioToBest,
    RatioToBest,
    WorstPercentile,
)
from perf.gateway import rows as gateway_rows
from perf.loader import rivals
from perf.results import Round, Run, read_run
from perf.scheduler import live_rows
from perf.scheduler.estimate_rows import TIERS

RESULTS = Path(__file__).parent / "results"
COUNTED_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A goal for one figure of a benchmark; where the machine bounds it, the goal follows from the rounds too."""

    id: str
    benchmark: str
    formula: Formula
    comparison: Literal["≥", "≤"]
    goal: float | Formula
    says: str

    def goal_in(self, rounds: Sequence[Round]) -> float | None:
        return self.goal if isinstance(self.goal, float) else self.goal.value(rounds)

    def holds(self, value: float, goal: float) -> bool:
        return value >= goal if self.comparison == "≥" else value <= goal


CLAIMS = (
    Claim(
        id="start.cold_vs_stock",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="stock", to="cold_dram"),
        comparison="≥",
        goal=20.0,
        says="request to first token of a model that is not running, weights in DRAM: "
        "how many times faster than the usual Triton Python model",
    ),
    Claim(
        id="start.cold_vs_stock_no_auto_complete",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="stock_no_auto_complete", to="cold_dram"),
        comparison="≥",
        goal=14.0,
        says="the same, with the rival's server spared Triton's auto-completion of model configurations",
    ),
    Claim(
        id="start.parked_vs_stock",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="stock", to="parked_dram"),
        comparison="≥",
        goal=40.0,
        says="the same from parked: the model's stub waits in Triton, its engine and its device memory are gone",
    ),
    Claim(
        id="start.large_dram_vs_stock",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="large_stock_no_auto_complete", to="large_cold_dram"),
        comparison="≥",
        goal=5.0,
        says="2.2 GB of weights, not running, in DRAM (the rival's in the page cache), neither with auto-completion: "
        "how many times faster",
    ),
    Claim(
        id="start.large_ssd_vs_stock",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="large_stock_no_auto_complete_cold", to="large_cold_ssd"),
        comparison="≥",
        goal=3.0,
        says="the same with the weights of both on disk only",
    ),
    Claim(
        id="loader.cold_vs_ceiling",
        benchmark="loader-race",
        formula=PairedRatioToBest(of="ours_bytes_per_s", to="bytes_per_s", rows=rivals.FASTEST_CEILINGS),
        comparison="≥",
        goal=0.95,
        says="2.2 GB from disk until every page was summed, hashes checked: "
        "what share of the speed at which a plain O_DIRECT reader fills memory and sums it",
    ),
    Claim(
        id="loader.cold_vs_best_peer",
        benchmark="loader-race",
        formula=PairedRatioToBest(of="ours_bytes_per_s", to="bytes_per_s", rows=rivals.FASTEST_COLD_PEERS),
        comparison="≥",
        goal=0.95,
        says="the same, against runai-model-streamer at its best setting or tensorizer, whichever is faster; "
        "perf.loader's other peers are slower than both",
    ),
    Claim(
        id="loader.cold_vs_safetensors",
        benchmark="loader",
        formula=MedianRatio(metric="bytes_per_s", of=rivals.COLD_OURS, to=rivals.COLD_SAFETENSORS),
        comparison="≥",
        goal=CappedShare(
            cap=1.3, share=0.95, metric="bytes_per_s", of=tuple(rivals.CEILINGS), to=rivals.COLD_SAFETENSORS
        ),
        says="the same, against safetensors' own loader",
    ),
    Claim(
        id="loader.warm_vs_best_copying_peer",
        benchmark="loader",
        formula=RatioToBest(metric="bytes_per_s", of=rivals.WARM_OURS_4K, to=rivals.WARM_COPYING_PEERS),
        comparison="≥",
        goal=8.0,
        says="from memory into a new process, with 4 KB pages: "
        "how many times faster than the fastest loader that copies",
    ),
    Claim(
        id="loader.warm_huge_pages_vs_torch_mmap",
        benchmark="loader",
        formula=MedianRatio(metric="bytes_per_s", of=rivals.WARM_OURS_HUGE, to=rivals.WARM_TORCH_MMAP),
        comparison="≥",
        goal=1.5,
        says="the same with 2 MB pages, against torch.load(mmap=True)",
    ),
    Claim(
        id="loader.premapped_attach_s",
        benchmark="loader",
        formula=Median(metric="beyond_plain_sum_s", of=rivals.PREMAPPED),
        comparison="≤",
        goal=0.020,
        says="seconds from attach until every page was summed, by a worker that mapped the arena before, "
        "less the sum's own time over plain memory",
    ),
    Claim(
        id="loader.checksum_cost",
        benchmark="loader-race",
        formula=PairedOverhead(row=rivals.UNHASHED, with_it="ours_bytes_per_s", without_it="bytes_per_s"),
        comparison="≤",
        goal=0.05,
        says="what comparing every byte with its hash adds to a cold load",
    ),
    Claim(
        id="engine.batch16_vs_generate",
        benchmark="engine",
        formula=MedianRatio(metric="batch16_tokens_per_s", of=engine_rivals.OURS, to=engine_rivals.GENERATE),
        comparison="≥",
        goal=1.2,
        says="16 prompts at once in bfloat16, tokens a second: how many times those of transformers' generate()",
    ),
    Claim(
        id="engine.batch16_vs_transformers_cb",
        benchmark="engine",
        formula=MedianRatio(metric="batch16_tokens_per_s", of=engine_rivals.OURS, to=engine_rivals.CONTINUOUS_BATCHING),
        comparison="≥",
        goal=1.5,
        says="the same, against transformers' own continuous batching",
    ),
    Claim(
        id="engine.prefill_vs_forward",
        benchmark="engine",
        formula=MedianRatio(metric="prefill_s", of=engine_rivals.OURS, to=engine_rivals.GENERATE),
        comparison="≤",
        goal=1.2,
        says="a prompt of 512 tokens in bfloat16 until its first token: over the time of the model's own forward pass",
    ),
    Claim(
        id="engine.exact_prefill_cost",
        benchmark="engine",
        formula=MedianRatio(metric="prefill_s", of=engine_rivals.OURS_EXACT, to=engine_rivals.OURS),
        comparison="≤",
        goal=2.0,
        says="the same, exact mode against fast mode",
    ),
    Claim(
        id="engine.exact_decode_cost",
        benchmark="engine",
        formula=MedianRatio(metric="batch16_itl_s", of=engine_rivals.OURS_EXACT, to=engine_rivals.OURS),
        comparison="≤",
        goal=1.4,
        says="time between tokens of 16 streams in bfloat16, exact mode against fast mode",
    ),
    Claim(
        id="engine.recompute_vs_decode",
        benchmark="engine",
        formula=MetricRatio(row=engine_rivals.OURS_EXACT, of="decoded_token_s", to="recomputed_token_s"),
        comparison="≥",
        goal=20.0,
        says="a sequence of 512 tokens in exact mode: how many times faster a token is recomputed than decoded",
    ),
    Claim(
        id="worker.death_reported_s",
        benchmark="worker-death",
        formula=Largest(metric="last_to_hear_s", of="killed_worker"),
        comparison="≤",
        goal=0.1,
        says="a worker killed by SIGKILL in the middle of a stream: "
        "seconds until both its client and the scheduler have heard, in the slowest round",
    ),
    Claim(
        id="gateway.added_p50_s",
        benchmark="gateway",
        formula=PairedDifference(metric="latency_p50_s", of=gateway_rows.PACED_GATEWAY, to=gateway_rows.PACED_DIRECT),
        comparison="≤",
        goal=0.0005,
        says="8 streams of 50 tokens a second: what the gateway adds to a token's way from the engine to its client, "
        "in seconds at the median",
    ),
    Claim(
        id="gateway.added_p99_s",
        benchmark="gateway",
        formula=PairedDifference(metric="latency_p99_s", of=gateway_rows.PACED_GATEWAY, to=gateway_rows.PACED_DIRECT),
        comparison="≤",
        goal=0.003,
        says="the same at the 99th percentile",
    ),
    Claim(
        id="gateway.messages_per_s",
        benchmark="gateway",
        formula=Median(metric="messages_per_s", of=gateway_rows.RELAY_1),
        comparison="≥",
        goal=8000.0,
        says="messages of one token that one gateway process relays in a second, of 8 streams",
    ),
    Claim(
        id="gateway.idle_streams_bytes",
        benchmark="gateway",
        formula=Median(metric="gateway_bytes", of=gateway_rows.IDLE_GATEWAY),
        comparison="≤",
        goal=float(1 << 30),
        says="resident memory of the gateway's process with 2,000 streams of a token every 2 s each, in bytes",
    ),
    Claim(
        id="scheduler.estimate_error_p50",
        benchmark="scheduler-estimate",
        formula=WorstPercentile(detail="errors", of=TIERS, percent=50, least=100),
        comparison="≤",
        goal=0.10,
        says="how far off the predicted time until a replica is ready was, as a share of what it took: "
        "the middle one of 100 starts, from DRAM, SSD or the network, whichever is predicted worst",
    ),
    Claim(
        id="scheduler.estimate_error_p95",
        benchmark="scheduler-estimate",
        formula=WorstPercentile(detail="errors", of=TIERS, percent=95, least=100),
        comparison="≤",
        goal=0.30,
        says="the same at the 95th percentile",
    ),
    Claim(
        id="scheduler.p99_vs_best_rival",
        benchmark="scheduler-live",
        formula=GeometricRatioToBest(
            metric="p99_s",
            of=tuple(live_rows.row_of(live_rows.OURS, load) for load in live_rows.LOADS),
            to=tuple(tuple(live_rows.row_of(rival, load) for load in live_rows.LOADS) for rival in live_rows.RIVALS),
        ),
        comparison="≥",
        goal=1.2,
        says="four nodes, an Azure-shaped workload at 0.3, 0.6 and 0.9 of the slowest policy's capacity: how many "
        "times shorter the 99th percentile of startup latency is than the best rival's; geometric mean over the loads",
    ),
)


def judge(run: Run) -> list[dict[str, Any]]:
    """The claims that one run's own rounds give, as they stand in its file."""
    rounds = run.valid_rounds
    of_run = [claim for claim in CLAIMS if claim.benchmark == run.benchmark]
    judged = [(claim, claim.formula.value(rounds), claim.goal_in(rounds)) for claim in of_run]
    return [
        {"id": claim.id, "value": value, "goal": goal, "holds": claim.holds(value, goal)}
        for claim, value, goal in judged
        if value is not None and goal is not None
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim on a hardware class by its last recorded runs, oldest first. Both numbers are their
    median; `value` is None where there are no runs."""

    claim: Claim
    hardware_class: str
    value: float | None
    goal: float | None
    values: tuple[float, ...] = ()
    commits: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value is not None and self.goal is not None and self.claim.holds(self.value, self.goal)


def recorded_runs(folder: Path = RESULTS) -> list[Run]:
    """Raises UnreadableRun."""
    return [read_run(file) for file in sorted(folder.glob("*/*.json"))]


def verdicts(runs: Iterable[Run], claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """By claim, one for each hardware class with recorded runs of its benchmark, or one that says there are none."""
    found: list[Verdict] = []
    runs = sorted(runs, key=lambda run: run.started_at)
    for claim in claims:
        of_claim = _by_class(run for run in runs if run.benchmark == claim.benchmark)
        found += [_verdict(claim, name, of_class) for name, of_class in sorted(of_claim.items())]
        if not of_claim:
            found.append(Verdict(claim=claim, hardware_class="no recorded run", value=None, goal=claim.goal_in(())))
    return found


def _by_class(runs: Iterable[Run]) -> Mapping[str, list[Run]]:
    classes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        classes[run.hardware_class].append(run)
    return classes


def _verdict(claim: Claim, hardware_class: str, runs: Sequence[Run]) -> Verdict:
    counted = [(run.commit, run.valid_rounds) for run in runs[-COUNTED_RUNS:]]
    measured = [(commit, claim.formula.value(rounds), claim.goal_in(rounds)) for commit, rounds in counted]
    values = tuple(value for _, value, _ in measured if value is not None)
    goals = [goal for _, _, goal in measured if goal is not None]
    return Verdict(
        claim=claim,
        hardware_class=hardware_class,
        value=median(values) if values else None,
        goal=median(goals) if goals else None,
        values=values,
        commits=tuple(commit for commit, value, _ in measured if value is not None),
    )
