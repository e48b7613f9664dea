"""How far off predicted starts are: real starts on a real node, each predicted before it began.

Models of several sizes, local ones and ones behind a URL, are asked for at random, one or two at a time, where two fit:
others make room, are parked or unloaded, and loads queue. What was predicted until the replica was ready stands beside
what that took in each request's receipt. A row is where the weights came from. `python -m perf.scheduler estimate`.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from perf import harness, page_cache
from perf.gateway.children import child
from perf.harness import InvalidRound, Measure
from perf.loader.forms import Shape
from perf.results import Measurement, Run, percentile
from perf.scheduler.estimate_rows import TIERS
from perf.start_models import write_model
from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.model_repository import EngineLimits, add_model, describe_checkpoint
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster

PROMPT = "The three primary colours are"
LIMITS = EngineLimits(max_sequence_tokens=512, max_streams=4)
# A node's links, below what the machine has, so that other nodes could have theirs.
SSD_BYTES_PER_SECOND, REMOTE_BYTES_PER_SECOND = 500_000_000, 300_000_000
PLACES = 2  # replicas that fit
MAX_PARKED = 2  # as many as neither run nor are parked: starts are cold as often as parked
AT_ONCE_SHARE = 0.25  # of requests that come with another, so that loads queue: from DRAM none does
REST_S = (0.6, 0.9)  # between requests: until workers have been forked in place of those that were taken
# Llamas with SmolLM2's vocabulary, of about half its size and one and a half times it.
SMALL = Shape(
    name="llama-60m-computes", layers=4, hidden=512, intermediate=1408, key_value=128, vocabulary=49152, computes=True
)
MEDIUM = Shape(
    name="llama-200m-computes",
    layers=10,
    hidden=1024,
    intermediate=2816,
    key_value=256,
    vocabulary=49152,
    computes=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateBenchmark:
    """`starts` are a row's in one round, `warm_up` those of each row before the first: from them it is learned what
    starts take here. `shapes` are of models beside the demo model.
    """

    name: str = "scheduler-estimate"
    headline: str = "error_p50"
    full_rounds: int = 10
    packages: tuple[str, ...] = ()
    starts: int = 10
    warm_up: int = 20
    shapes: tuple[Shape, ...] = (SMALL, MEDIUM)

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        demo_model = ensure_demo_model(report=print)
        with harness.scratch_folder() as folder:
            files = folder / "files"
            checkpoints = [Path(shutil.copytree(demo_model, files / "demo"))]
            checkpoints += [write_model(shape, demo_model, files / shape.name) for shape in self.shapes]
            with (
                child("perf.scheduler.file_server", str(files)) as server,
                _cluster(folder, checkpoints, f"http://{server.address}") as cluster,
            ):
                asked = Starts(cluster=cluster, sources=_sources(checkpoints, f"http://{server.address}"), seed=seed)
                rows = {tier: partial(self._measure, asked, tier) for tier in TIERS}
                for tier in TIERS * 2:
                    asked.measure(tier, self.warm_up // 2)
                yield rows

    def _measure(self, asked: Starts, tier: str) -> Measurement:
        starts = asked.measure(tier, self.starts)
        errors = [start["error"] for start in starts]
        figures = {
            "error_p50": percentile(errors, 50),
            "error_p95": percentile(errors, 95),
            "ready_p50_s": percentile([start["actual"]["total_s"] for start in starts], 50),
        }
        return Measurement(figures=figures, details={"errors": errors, "starts": starts})

    def documents(self, run: Run) -> Mapping[str, str]:
        return {}


def main(arguments: Sequence[str]) -> int:
    return harness.main(EstimateBenchmark(), "perf.scheduler estimate", arguments)


def _sources(checkpoints: Sequence[Path], address: str) -> Mapping[str, str]:
    """Where each model's weights are, by its name."""
    local = {f"local-{path.name}": str(path) for path in checkpoints}
    return {**local, **{f"remote-{path.name}": f"{address}/{path.name}" for path in checkpoints}}


@contextmanager
def _cluster(folder: Path, checkpoints: Sequence[Path], address: str) -> Iterator[LocalCluster]:
    """One node, whose DRAM holds all models."""
    for name, source in _sources(checkpoints, address).items():
        add_model(folder / "models", name, source, limits=LIMITS)
    specs = [describe_checkpoint(path, LIMITS) for path in checkpoints]
    with LocalCluster(
        folder,
        folder / "models",
        servers=1,
        control={"max_parked_per_server": MAX_PARKED},
        dram_bytes=3 * sum(spec.checkpoint_bytes for spec in specs),
        device_memory_bytes=PLACES * max(spec.device_bytes for spec in specs),
        ssd_bytes_per_second=SSD_BYTES_PER_SECOND,
        remote_bytes_per_second=REMOTE_BYTES_PER_SECOND,
        spare_workers=PLACES,
    ) as cluster:
        yield cluster


@dataclass(slots=True, kw_only=True)
class Starts:
    """Starts of models that do not run, from the tier that is asked for."""

    cluster: LocalCluster
    sources: Mapping[str, str]
    seed: int
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def measure(self, tier: str, count: int) -> list[dict[str, Any]]:
        """What was predicted of so many starts, what they took, and the errors. Raises InvalidRound."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            time.sleep(self._random.uniform(*REST_S))
            at_once = PLACES if tier != "dram" and self._random.random() < AT_ONCE_SHARE else 1
            found += self._start(tier, min(at_once, count - len(found)))
        return found

    def _start(self, tier: str, at_once: int) -> list[dict[str, Any]]:
        while not (idle := self._idle() & self._of(tier)):  # some that may not run do, so that others have to
            self.cluster.generate(self._random.choice(sorted(self._idle())), PROMPT, max_tokens=1)
        models = self._random.sample(sorted(idle), min(at_once, len(idle)))
        for model in models:
            self._bring_to(tier, model)
        streams = [self.cluster.stream(model, PROMPT, max_tokens=1) for model in models]
        heard = [stream.rest() for stream in streams]
        if errors := [error for one in heard for error in one.errors]:
            raise harness.BenchmarkFailed(f"a model did not answer: {errors}; see {self.cluster.logs}")
        return [self._record(tier, one.stream_id) for one in heard]

    def _idle(self) -> set[str]:
        return self.sources.keys() - {replica["model"] for replica in self.cluster.replicas()}

    def _of(self, tier: str) -> set[str]:
        kind = {"ssd": "local-", "remote": "remote-"}.get(tier, "")
        return {model for model in self.sources if model.startswith(kind)}

    def _bring_to(self, tier: str, model: str) -> None:
        source, epoch = self.sources[model], self.cluster.status()["epoch"]
        with grpc.insecure_channel(self.cluster.agent_address()) as channel:
            agent = agent_pb2_grpc.NodeAgentStub(channel)  # it tells the scheduler at once
            shown = self.cluster.agent_metadata()
            if tier == "dram":
                agent.Prefetch(agent_pb2.PrefetchRequest(epoch=epoch, checkpoint=source), metadata=shown)
            else:
                agent.Evict(agent_pb2.EvictRequest(epoch=epoch, checkpoint=source), metadata=shown)
        if tier == "ssd":
            page_cache.evict([file for file in sorted(Path(source).iterdir()) if file.is_file()])
        self.cluster.until(lambda: self._is_in_dram(source) == (tier == "dram"), f"{model} is where it should be")

    def _is_in_dram(self, source: str) -> bool:
        (server,) = self.cluster.status()["servers"]
        return source in server["in_dram"]

    def _record(self, tier: str, stream: str | None) -> dict[str, Any]:
        (receipt,) = self.cluster.get(f"/v2/cluster/receipts/{stream}")["receipts"]
        if receipt["tier"] != tier or receipt["comparison"] is None:
            raise InvalidRound(f"a {receipt['kind']} start from {receipt['tier']} instead of one from {tier}")
        compared = receipt["comparison"]
        predicted_s, actual_s = (compared[side]["total_s"] for side in ("predicted", "actual"))
        named = {name: receipt[name] for name in ("model", "kind", "tier", "bytes")}
        return {**named, **compared, "error": abs(predicted_s - actual_s) / actual_s}
