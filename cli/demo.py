"""`serverless-triton demo`: the main job, watched. Exits 0 only if every part of it worked."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import tritonclient.http as triton_http

from serverless_triton.backend.model_repository import EngineLimits, add_model
from serverless_triton.backend.triton_install import find_triton, stock_environment
from serverless_triton.cli.demo_model import DEMO_NAMES, ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stock_triton import StockTriton
from serverless_triton.cli.stream_client import Heard
from serverless_triton.cli.terminal import heading, say, step
from serverless_triton.scheduler.receipts import Receipt, format_table, from_json

LIMITS = EngineLimits(max_sequence_tokens=1024, max_streams=4, threads=2)
DRAM_BYTES = 2 << 30
SSD_BYTES_PER_SECOND = 600_000_000  # per server: two nodes on one disk each get less than half of it
STOCK_STARTS = 2
TOKENS = 40
LONG_TOKENS = 120
KILL_AFTER = 30


class DemoFailed(click.ClickException):
    """Something that the demo shows did not happen."""


@dataclass
class Demo:
    """One run: what was asked, what came of it."""

    cluster: LocalCluster
    receipts: list[Receipt] = field(default_factory=list)

    def running(self) -> list[str]:
        """Models with a replica, by name."""
        return sorted({replica["model"] for replica in self.cluster.replicas()})

    def sleeping(self) -> list[str]:
        """Models without one, by name."""
        return [name for name in DEMO_NAMES if name not in self.running()]

    def ask(self, model: str, question: str, *, expect: tuple[str, ...]) -> None:
        """Over gRPC, printing tokens as they arrive; `expect` are the kinds of start that are right here."""
        say(f"\n  {model} (gRPC): {question}\n    ", newline=False)
        heard = self._listen(model, question, on_token=lambda _: None, max_tokens=TOKENS)
        self._note(heard, expect)

    def ask_over_http(self, model: str, question: str, *, expect: tuple[str, ...]) -> None:
        """With tritonclient.http, which knows no streams: the whole text in one answer."""
        say(f"\n  {model} (HTTP): {question}")
        with triton_http.InferenceServerClient(self.cluster.http, network_timeout=120.0) as client:
            result = client.infer(model, _http_inputs(question))
        response = result.get_response()
        say(f"    {_one_line(result.as_numpy('text_output')[0].decode())}", dim=True)
        self._receipts(response["parameters"]["stream_id"], expect)

    def outlive_a_server(self, model: str, question: str) -> None:
        """A server is killed while this stream runs on it."""
        say(f"\n  {model} (gRPC): {question}\n    ", newline=False)

        def kill_once(count: int) -> None:
            if count == KILL_AFTER:
                server = self.cluster.serving(model)["server"]
                self.cluster.kill(self.cluster.pid(f"{server}.triton"))
                click.secho(f" ⟨{server} killed⟩ ", fg="red", bold=True, nl=False)

        # Without an end of its own, so that its length tells whether every token came.
        heard = self._listen(model, question, on_token=kill_once, max_tokens=LONG_TOKENS, ignore_eos=True)
        if len(heard.output_ids) != LONG_TOKENS:
            raise DemoFailed(f"the stream has {len(heard.output_ids)} tokens instead of {LONG_TOKENS}")
        self._note(heard, ("warm", "cold", "parked", "resumed"))
        if self.receipts[-1].kind != "resumed":
            raise DemoFailed("the stream was not resumed on another server")

    def _listen(self, model: str, question: str, *, on_token: Callable[[int], None], **sampling: Any) -> Heard:
        stream = self.cluster.stream(model, _chat(question), **sampling)
        printed = 0
        try:
            while stream.next():
                for text in stream.heard.texts[printed:]:
                    click.secho(text.replace("\n", " "), dim=True, nl=False)
                    printed += 1
                    on_token(printed)
        finally:
            stream.close()
        say()
        return stream.heard

    def _note(self, heard: Heard, expect: tuple[str, ...]) -> None:
        if heard.errors:
            raise DemoFailed(heard.errors[0])
        assert heard.stream_id is not None
        self._receipts(heard.stream_id, expect)

    def _receipts(self, stream_id: str, expect: tuple[str, ...]) -> None:
        for body in self.cluster.get(f"/v2/cluster/receipts/{stream_id}")["receipts"]:
            receipt = from_json(body)
            if receipt.kind not in expect:
                raise DemoFailed(f"{receipt.model}: a {receipt.kind} start where {' or '.join(expect)} was expected")
            say(f"    {receipt.kind}: first token after {receipt.actual_s:.3f} s on {receipt.server}")
            self.receipts.append(receipt)


def _chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _http_inputs(question: str) -> list[Any]:
    def tensor(name: str, kind: str, value: Any) -> Any:
        made = triton_http.InferInput(name, [1], kind)
        made.set_data_from_numpy(value)
        return made

    sampling = f'{{"max_tokens": {TOKENS}}}'.encode()
    return [
        tensor("text_input", "BYTES", np.array([_chat(question).encode()], dtype=np.object_)),
        tensor("sampling_parameters", "BYTES", np.array([sampling], dtype=np.object_)),
        tensor("exclude_input_in_output", "BOOL", np.array([True])),
    ]


@click.command()
@click.option("--logs", type=click.Path(path_type=Path), default=Path("build/demo-logs"), show_default=True)
def command(logs: Path) -> None:
    """Wake, swap and move models on two real Triton servers."""
    shutil.rmtree(logs, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="st-demo-") as folder:
        _run(Path(folder), logs)


def _run(folder: Path, logs: Path) -> None:
    heading("Four models, two Triton servers with room for one each")
    with step("  Triton and its environments", 40):
        installation = find_triton()
        stock_environment(installation)
    with step("  SmolLM2-135M-Instruct as a Hugging Face directory", 40):
        checkpoint = ensure_demo_model()
    repository = _four_models(checkpoint, folder)
    cluster = LocalCluster(
        folder,
        repository,
        logs=logs,
        device_memory_bytes=_room_for_one(repository),
        dram_bytes=DRAM_BYTES,
        ssd_bytes_per_second=SSD_BYTES_PER_SECOND,
    )
    demo = Demo(cluster)
    with step("  two servers, their stores, agents and zygotes, and the gateway", 12):
        cluster.__enter__()
    try:
        _show(demo)
        stock = _measure_stock(installation, checkpoint, logs)
    finally:
        with step("\n  everything ends", 4):
            cluster.stop()
    _sum_up(demo, stock)


def _four_models(checkpoint: Path, folder: Path) -> Path:
    """The demo model four times, each with a checkpoint of its own: nothing here knows that they are equal."""
    repository = folder / "models"
    for name in DEMO_NAMES:
        own = shutil.copytree(checkpoint, folder / "checkpoints" / name, copy_function=_link)
        add_model(repository, name, own, limits=LIMITS)
    return repository


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _room_for_one(repository: Path) -> int:
    from serverless_triton.backend.messages import ModelSpec
    from serverless_triton.backend.model_repository import read_parameters

    (need,) = {ModelSpec.parse(parameters).device_bytes for parameters in read_parameters(repository)}
    return need * 3 // 2


def _show(demo: Demo) -> None:
    a, b, c, d = DEMO_NAMES
    heading("Cold: a model that is asked for and not running is started")
    demo.ask(a, "What is the capital of France?", expect=("cold",))
    demo.ask(b, "Name three colours.", expect=("cold",))
    heading("Warm: it runs already")
    demo.ask(demo.running()[0], "What is two plus two?", expect=("warm",))
    heading("Swapped in: no room is left, so the model that was idle longest makes some")
    demo.ask(c, "What does a baker make?", expect=("cold",))
    demo.ask_over_http(d, "What colour is the sky?", expect=("cold",))
    heading("Swapped back in: its weights are still in a server's DRAM, its stub still in a Triton")
    for ask, question in (
        (demo.ask, "What is the opposite of hot?"),
        (demo.ask_over_http, "Why is the sea salty?"),
        (demo.ask, "How many legs has a spider?"),
    ):
        ask(demo.sleeping()[0], question, expect=("cold", "parked"))
    demo.ask_over_http(demo.running()[0], "Who wrote Hamlet?", expect=("warm",))
    heading("A server is killed in the middle of a stream, and the stream goes on")
    demo.outlive_a_server(demo.running()[0], "Tell me a story about a lighthouse.")


def _measure_stock(installation: Any, checkpoint: Path, logs: Path) -> dict[str, list[float]]:
    heading("The same model served by the usual Triton Python model (torch and from_pretrained in model.py)")
    measured: dict[str, list[float]] = {}
    for name, auto_complete in (("Triton's defaults", True), ("without auto-complete", False)):
        with StockTriton(installation, checkpoint, logs, auto_complete=auto_complete) as stock:
            prompt = _chat("What is the capital of France?")
            with step(f"  {name}: one start to warm the page cache, then {STOCK_STARTS} that count", 25):
                stock.cold_start_s(prompt)  # the files come into the page cache
                measured[name] = [stock.cold_start_s(prompt) for _ in range(STOCK_STARTS)]
    return measured


def _sum_up(demo: Demo, stock: dict[str, list[float]]) -> None:
    heading("Receipts: request → first token")
    say(format_table(demo.receipts))
    swaps = [receipt.actual_s for receipt in demo.receipts if receipt.kind == "parked" and receipt.tier == "dram"]
    if not swaps:
        raise DemoFailed("a model that had been parked was not started from DRAM")
    ours = statistics.median(swaps)
    say(f"\n  ours, parked, weights in DRAM {ours:6.3f} s  (median of {len(swaps)})")
    for name, seconds in stock.items():
        theirs = statistics.median(seconds)
        say(f"  stock, {name:22} {theirs:6.3f} s  (median of {len(seconds)})  {theirs / ours:.1f} times as long")
    click.secho("\n✓ everything worked", fg="green", bold=True)
