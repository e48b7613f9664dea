"""How soon a model that is not running answers: ours, and the usual Triton Python model with and without auto-complete.

Every rival gets the same prompt, and finds its files where the row says: in memory (the store's DRAM tier, the page
cache) or on disk only. Timed is what a client sees: from asking until the first token is there. `python -m perf.start`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc

from perf import harness, page_cache, waterfall
from perf.harness import InvalidRound, Measure
from perf.loader.forms import Shape
from perf.results import Measurement, Run
from perf.start_models import LARGE, write_model
from serverless_triton.backend.model_repository import EngineLimits, add_model
from serverless_triton.backend.triton_install import TritonInstallation, find_triton
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stock_triton import StockTriton
from serverless_triton.loader import Store
from serverless_triton.scheduler.receipts import UNEXPLAINED

MODEL, LARGE_MODEL = "smollm2", "large"
PROMPT = "Explain to a curious child, in two short sentences, why the sky is blue and the sunset is red."
MAX_TOKENS = 16
# Hardly more than the checkpoints, so that it is prefaulted long before the first round.
DRAM_BYTES, LARGE_DRAM_BYTES = 1 << 30, 2 << 30
KEEP_ALIVE_S = 3.0
PARKED_REST_S = 1.0  # until the next worker is forked, which is also what a parked model's day looks like
# Stock models use every core that torch finds; the large one of ours gets as many.
LARGE_LIMITS = EngineLimits(max_sequence_tokens=512, max_streams=4, threads=2)
TITLES = {
    "parked_dram": "SmolLM2, parked, weights in memory",
    "cold_dram": "SmolLM2, cold, weights in memory",
    "cold_ssd": "SmolLM2, cold, weights on disk",
    "warm": "SmolLM2, running",
    "large_parked_dram": "2.2 GB, parked, weights in memory",
    "large_cold_dram": "2.2 GB, cold, weights in memory",
    "large_cold_ssd": "2.2 GB, cold, weights on disk",
    "large_warm": "2.2 GB, running",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartBenchmark:
    """`large`: the shape of a second model, in rows of its own; None leaves them out."""

    name: str = "start"
    headline: str = "first_token_s"
    full_rounds: int = 9
    packages: tuple[str, ...] = ()
    large: Shape | None = LARGE

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        """A cluster with one server, and stock servers, all of them up and idle."""
        demo_model, installation = ensure_demo_model(report=print), find_triton(report=print)
        with ExitStack() as stack:
            folder = stack.enter_context(harness.scratch_folder())
            # Copies of their own: what another process has mapped cannot be dropped from the page cache.
            copy = Path(shutil.copytree(demo_model, folder / demo_model.name))
            add_model(folder / "models", MODEL, copy)
            large = self._large_copies(folder, demo_model)
            if large:
                add_model(folder / "models", LARGE_MODEL, large[0], limits=LARGE_LIMITS)
            cluster = stack.enter_context(_cluster(folder, LARGE_DRAM_BYTES if large else 0))
            rows = _our_rows(OurStarts(cluster=cluster, model=MODEL, checkpoint=copy))
            rows |= _stock_rows(stack, installation, demo_model, folder / "logs")
            if large:
                ours, theirs = large
                rows |= _large(_our_rows(OurStarts(cluster=cluster, model=LARGE_MODEL, checkpoint=ours)))
                rows |= _large_stock_rows(stack, installation, theirs, folder / "logs" / "large")
            yield rows

    def _large_copies(self, folder: Path, tokenizer_of: Path) -> list[Path]:
        """Ours and the rival's; nothing where there is to be no large model."""
        if self.large is None:
            return []
        return [write_model(self.large, tokenizer_of, folder / f"large-{whose}") for whose in ("ours", "stock")]

    def documents(self, run: Run) -> Mapping[str, str]:
        """A waterfall of each row's typical start."""
        subtitle = f"request to first token; dark is what was waited for; medians of {len(run.valid_rounds)} rounds; "
        starts = waterfall.typical_starts(run, TITLES)
        return {".svg": waterfall.svg("Where each millisecond of a start goes", subtitle + run.hardware_class, starts)}


def _cluster(folder: Path, more_dram_bytes: int) -> LocalCluster:
    return LocalCluster(
        folder,
        folder / "models",
        servers=1,
        dram_bytes=DRAM_BYTES + more_dram_bytes,
        control={"keep_alive_s": KEEP_ALIVE_S},
    )


def _our_rows(ours: OurStarts) -> dict[str, Measure]:
    ours.warm()  # the first start of all fills the DRAM tier
    return {
        "parked_dram": ours.parked_dram,
        "cold_dram": ours.cold_dram,
        "cold_ssd": ours.cold_ssd,
        "warm": ours.warm,
    }


def _large(rows: Mapping[str, Measure]) -> dict[str, Measure]:
    return {f"large_{row}": measure for row, measure in rows.items()}


def _stock_rows(stack: ExitStack, installation: TritonInstallation, checkpoint: Path, logs: Path) -> dict[str, Measure]:
    stock, spared = (
        stack.enter_context(StockTriton(installation, checkpoint, logs, auto_complete=auto_complete))
        for auto_complete in (True, False)
    )
    return {
        "stock": lambda: _stock(stock, checkpoint),
        "stock_no_auto_complete": lambda: _stock(spared, checkpoint),
    }


def _large_stock_rows(
    stack: ExitStack, installation: TritonInstallation, checkpoint: Path, logs: Path
) -> dict[str, Measure]:
    """Spared auto-completion, as our servers are: what is compared is the loading."""
    stock = stack.enter_context(StockTriton(installation, checkpoint, logs, auto_complete=False))
    return {
        "large_stock_no_auto_complete": lambda: _stock(stock, checkpoint),
        "large_stock_no_auto_complete_cold": lambda: _stock_from_disk(stock, checkpoint),
    }


def _stock(server: StockTriton, checkpoint: Path) -> Measurement:
    page_cache.fill(_files(checkpoint))
    return Measurement(figures={"first_token_s": server.cold_start_s(PROMPT)})


def _stock_from_disk(server: StockTriton, checkpoint: Path) -> Measurement:
    """The checkpoint is not in the page cache; what the server itself consists of may be."""
    server.unload()  # what it has mapped stays in the page cache
    page_cache.evict(_files(checkpoint))
    if (share := page_cache.resident_share(_files(checkpoint))) > page_cache.EMPTY_SHARE:
        raise InvalidRound(f"{share:.1%} of the rival's checkpoint stayed in the page cache")
    return Measurement(figures={"first_token_s": server.cold_start_s(PROMPT)})


@dataclass(frozen=True, slots=True, kw_only=True)
class OurStarts:
    """A model on our cluster, from every state and tier, as a plain tritonclient sees it."""

    cluster: LocalCluster
    model: str
    checkpoint: Path

    def cold_dram(self) -> Measurement:
        self._make_cold()
        return self._first_token("cold", "dram")

    def cold_ssd(self) -> Measurement:
        """Neither in the store nor in the page cache."""
        self._make_cold()
        with Store(self.cluster.run_directory() / "server-0.store") as store:
            store.evict(self.checkpoint)
        page_cache.evict(_files(self.checkpoint))
        return self._first_token("cold", "ssd")

    def parked_dram(self) -> Measurement:
        """Nobody asked for it for a while, so that its worker has left and its stub has stayed."""
        self.cluster.generate(self.model, PROMPT, max_tokens=1)
        self.cluster.until(lambda: bool(self.cluster.parked(self.model)), f"{self.model} is parked")
        time.sleep(PARKED_REST_S)
        return self._first_token("parked", "dram")

    def warm(self) -> Measurement:
        """On a replica that is ready."""
        self.cluster.generate(self.model, PROMPT, max_tokens=1)
        return self._first_token("warm", None)

    def _first_token(self, kind: str, tier: str | None) -> Measurement:
        """Raises InvalidRound where the start was another one than it should be."""
        began_s = time.monotonic()
        stream = self.cluster.stream(self.model, PROMPT, max_tokens=MAX_TOKENS, ignore_eos=True)
        while not stream.heard.output_ids and stream.next():
            pass
        elapsed_s = time.monotonic() - began_s
        heard = stream.rest()
        if heard.errors or not heard.output_ids:
            raise harness.BenchmarkFailed(f"{self.model} did not answer: {heard.errors}; see {self.cluster.logs}")
        receipt = self.cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"][0]
        if (receipt["kind"], receipt["tier"]) != (kind, tier):
            raise InvalidRound(f"a {receipt['kind']} start from {receipt['tier']} instead of {kind} from {tier}")
        return Measurement(figures={"first_token_s": elapsed_s, **path_figures(receipt)}, details={"receipt": receipt})

    def _make_cold(self) -> None:
        """As any Triton client would, and then until nothing of it is left: Triton's own unload takes a second more."""
        with triton_grpc.InferenceServerClient(self.cluster.grpc) as client:
            client.unload_model(self.model)
        self.cluster.until(lambda: not self.cluster.replicas(self.model), f"{self.model} has no replica")
        with triton_grpc.InferenceServerClient(self.cluster.triton_address()) as server:
            self.cluster.until(lambda: not self._is_in(server), f"{self.model} is gone from Triton")

    def _is_in(self, server: Any) -> bool:
        index = server.get_model_repository_index(headers=self.cluster.triton_headers()).models
        return any(model.name == self.model and model.state != "UNAVAILABLE" for model in index)


def path_figures(receipt: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each kind of segment on the critical path, and the share of it that no span explains."""
    seconds: Counter[str] = Counter()
    for segment in receipt["critical_path"]:
        seconds[segment["name"]] += segment["duration_s"]
    figures = {f"path.{name}_s": spent_s for name, spent_s in seconds.items() if name != UNEXPLAINED}
    return {**figures, "unexplained_share": seconds[UNEXPLAINED] / receipt["actual_s"]}


def _files(checkpoint: Path) -> list[Path]:
    return [file for file in sorted(checkpoint.iterdir()) if file.is_file()]


if __name__ == "__main__":
    sys.exit(harness.main(StartBenchmark(), "perf.start"))
