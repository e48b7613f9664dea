"""How soon a model that is not running answers: ours, and the usual Triton Python model with and without auto-complete.

Every rival has its files in memory (the store's DRAM tier, the page cache) and gets the same prompt. Timed is what a
client sees: from asking until the first token is there. `python -m perf.start`.
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
import yaml

from perf import harness, page_cache
from perf.harness import InvalidRound, Measure
from perf.results import Measurement, Run
from serverless_triton.backend.model_repository import add_model
from serverless_triton.backend.triton_install import find_triton
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stock_triton import StockTriton
from serverless_triton.loader import Store
from serverless_triton.scheduler.receipts import UNEXPLAINED

MODEL = "smollm2"
PROMPT = "Explain to a curious child, in two short sentences, why the sky is blue and the sunset is red."
MAX_TOKENS = 16
DRAM_BYTES = 1 << 30  # small, so that it is prefaulted long before the first round


@dataclass(frozen=True, slots=True, kw_only=True)
class StartBenchmark:
    name: str = "start"
    headline: str = "first_token_s"
    full_rounds: int = 9
    packages: tuple[str, ...] = ()

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        """A cluster with one server, and two stock servers, all of them up and idle."""
        checkpoint, installation = ensure_demo_model(report=print), find_triton(report=print)
        with ExitStack() as stack:
            folder = stack.enter_context(harness.scratch_folder())
            # A copy of its own: what another process has mapped cannot be dropped from the page cache.
            copy = Path(shutil.copytree(checkpoint, folder / checkpoint.name))
            add_model(folder / "models", MODEL, copy)
            cluster = stack.enter_context(LocalCluster(folder, folder / "models", servers=1, dram_bytes=DRAM_BYTES))
            ours = OurStarts(cluster=cluster, checkpoint=copy)
            ours.warm()  # the first start of all fills the DRAM tier
            stock, spared = (
                stack.enter_context(StockTriton(installation, checkpoint, folder / "logs", auto_complete=auto_complete))
                for auto_complete in (True, False)
            )
            yield {
                "cold_dram": ours.cold_dram,
                "cold_ssd": ours.cold_ssd,
                "warm": ours.warm,
                "stock": lambda: _stock(stock, checkpoint),
                "stock_no_auto_complete": lambda: _stock(spared, checkpoint),
            }

    def documents(self, run: Run) -> Mapping[str, str]:
        return {}


def _stock(server: StockTriton, checkpoint: Path) -> Measurement:
    page_cache.fill(_files(checkpoint))
    return Measurement(figures={"first_token_s": server.cold_start_s(PROMPT)})


@dataclass(frozen=True, slots=True, kw_only=True)
class OurStarts:
    """The model on our cluster, from every tier, as a plain tritonclient sees it."""

    cluster: LocalCluster
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

    def warm(self) -> Measurement:
        """On a replica that is ready."""
        self.cluster.generate(MODEL, PROMPT, max_tokens=1)
        return self._first_token("warm", None)

    def _first_token(self, kind: str, tier: str | None) -> Measurement:
        """Raises InvalidRound where the start was another one than it should be."""
        began_s = time.monotonic()
        stream = self.cluster.stream(MODEL, PROMPT, max_tokens=MAX_TOKENS, ignore_eos=True)
        while not stream.heard.output_ids and stream.next():
            pass
        elapsed_s = time.monotonic() - began_s
        heard = stream.rest()
        if heard.errors or not heard.output_ids:
            raise harness.BenchmarkFailed(f"{MODEL} did not answer: {heard.errors}; see {self.cluster.logs}")
        receipt = self.cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"][0]
        if (receipt["kind"], receipt["tier"]) != (kind, tier):
            raise InvalidRound(f"a {receipt['kind']} start from {receipt['tier']} instead of {kind} from {tier}")
        return Measurement(figures={"first_token_s": elapsed_s, **path_figures(receipt)}, details={"receipt": receipt})

    def _make_cold(self) -> None:
        """As any Triton client would, and then until nothing of it is left: Triton's own unload takes a second more."""
        with triton_grpc.InferenceServerClient(self.cluster.grpc) as client:
            client.unload_model(MODEL)
        self.cluster.until(lambda: not self.cluster.replicas(MODEL), f"{MODEL} has no replica")
        with triton_grpc.InferenceServerClient(self._server_address()) as server:
            self.cluster.until(lambda: not _is_in(server), f"{MODEL} is gone from Triton")

    def _server_address(self) -> str:
        """The one Triton server's own, behind the gateway."""
        scheduler = yaml.safe_load((self.cluster.run_directory() / "scheduler.yaml").read_text())
        return str(scheduler["servers"][0]["triton"])


def _is_in(server: Any) -> bool:
    index = server.get_model_repository_index().models
    return any(model.name == MODEL and model.state != "UNAVAILABLE" for model in index)


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
