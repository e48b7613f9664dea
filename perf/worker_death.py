"""How soon a worker's death is known: killed by SIGKILL in the middle of a stream, while a neighbour streams on.

The engines are fakes with a pace, so that what is measured is who is told and when, and not who computes meanwhile. All
processes are real. `python -m perf.worker_death`; the claim is a tenth of a second to whoever hears last.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise

import grpc

from perf import harness
from perf.harness import InvalidRound, Measure
from perf.results import Measurement, Run
from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.model_repository import EngineLimits, add_model, describe_checkpoint
from serverless_triton.backend.node_secret import Metadata
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import GrpcStream

VICTIM, NEIGHBOUR = MODELS = ("victim", "neighbour")
PROMPT = "Once upon a time"
PACE = '{"tokens_per_s": 100}'
LIMITS = EngineLimits(engine="fake", max_sequence_tokens=4096, max_streams=4, engine_options=PACE)
DRAM_BYTES = 1 << 30
WATCHED_S = 1.0  # of the neighbour's stream, before and after
WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeathBenchmark:
    name: str = "worker-death"
    headline: str = "last_to_hear_s"
    full_rounds: int = 25
    packages: tuple[str, ...] = ()

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        checkpoint = ensure_demo_model(report=print)
        room_bytes = describe_checkpoint(checkpoint, LIMITS).kv_cache_bytes * 3
        with harness.scratch_folder() as folder:
            models = folder / "models"
            for model in MODELS:
                add_model(models, model, checkpoint, limits=LIMITS)
            with (
                LocalCluster(folder, models, servers=1, dram_bytes=DRAM_BYTES, device_memory_bytes=room_bytes) as up,
                grpc.insecure_channel(up.agent_address()) as agent,
            ):
                workers = WorkerWatch(agent, up.agent_metadata())
                yield {"killed_worker": Deaths(cluster=up, workers=workers).killed_worker}

    def documents(self, run: Run) -> Mapping[str, str]:
        return {}


class WorkerWatch:
    """What the agent shows of its workers: which there are, and when one was gone."""

    def __init__(self, agent: grpc.Channel, metadata: Metadata = ()) -> None:
        self._changed = threading.Condition()
        self._shown: frozenset[int] = frozenset()
        self._gone_s: dict[int, float] = {}
        watch = agent_pb2_grpc.NodeAgentStub(agent).Watch
        self._news = watch(agent_pb2.WatchRequest(), wait_for_ready=True, metadata=metadata)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for state in self._news:
                self._note(frozenset(replica.worker_pid for replica in state.replicas if replica.worker_pid))
        except grpc.RpcError:
            return  # the benchmark is over

    def _note(self, shown: frozenset[int]) -> None:
        now_s = time.monotonic()
        with self._changed:
            self._gone_s |= dict.fromkeys(self._shown - shown, now_s)
            self._shown = shown
            self._changed.notify_all()

    def gone_s(self, worker: int) -> float:
        """When it was shown no more. Raises InvalidRound where it still is."""
        with self._changed:
            if not self._changed.wait_for(lambda: worker in self._gone_s, WAIT_S):
                raise InvalidRound(f"the agent still shows worker {worker} after {WAIT_S:.0f} s")
            return self._gone_s[worker]


class Listener:
    """One client's stream, read as it comes by a thread of its own."""

    def __init__(self, stream: GrpcStream) -> None:
        self._stream = stream
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.ended_s: float | None = None

    def _listen(self) -> None:
        while self._stream.next():
            pass
        self.ended_s = time.monotonic()

    @property
    def times_s(self) -> tuple[float, ...]:
        """When each response came."""
        return tuple(self._stream.heard.times_s)

    @property
    def errors(self) -> Sequence[str]:
        return self._stream.heard.errors

    def until_first(self) -> float:
        """Raises InvalidRound."""
        deadline_s = time.monotonic() + WAIT_S
        while not self.times_s:
            if time.monotonic() > deadline_s or self.ended_s is not None:
                raise InvalidRound(f"no token came: {self.errors}")
            time.sleep(0.001)
        return self.times_s[0]

    def until_ended(self) -> float:
        """Raises InvalidRound."""
        self._thread.join(WAIT_S)
        if self.ended_s is None:
            raise InvalidRound(f"the stream goes on after {WAIT_S:.0f} s")
        return self.ended_s

    def close(self) -> None:
        self._stream.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """Deaths on one server. Its Triton is asked directly: past the gateway nobody resumes the stream."""

    cluster: LocalCluster
    workers: WorkerWatch

    def killed_worker(self) -> Measurement:
        victim, neighbour = self._streams()
        worker = self.cluster.serving(VICTIM)["worker_pid"]
        with closing(neighbour):
            time.sleep(WATCHED_S)
            killed_s = time.monotonic()
            self.cluster.kill(worker)
            news_s = {"client_s": _until_told(victim), "next_token_s": self._ask_again()}
            news_s["agent_s"] = self.workers.gone_s(worker)
            figures = {name: heard_s - killed_s for name, heard_s in news_s.items()}
            figures["last_to_hear_s"] = max(figures["agent_s"], figures["client_s"])
            return Measurement(figures=figures | _pauses(neighbour, killed_s))

    def _streams(self) -> tuple[Listener, Listener]:
        """One of each model, past its first token."""
        for model in MODELS:
            self.cluster.generate(model, PROMPT, max_tokens=1)  # starts it
        server = self.cluster.triton_address()
        headers = self.cluster.triton_headers()
        streams = [
            Listener(GrpcStream(server, m, PROMPT, headers=headers, max_tokens=4000, ignore_eos=True)) for m in MODELS
        ]
        for stream in streams:
            stream.until_first()
        victim, neighbour = streams
        return victim, neighbour

    def _ask_again(self) -> float:
        """When the next request to the model has its first token."""
        with closing(Listener(self.cluster.stream(VICTIM, PROMPT, max_tokens=1))) as stream:
            return stream.until_first()


def _until_told(victim: Listener) -> float:
    """When its client has been told. Raises InvalidRound where it was told something else."""
    ended_s = victim.until_ended()
    if not any("died" in error for error in victim.errors):
        raise InvalidRound(f"the client was told something else: {victim.errors}")
    victim.close()
    return ended_s


def _pauses(neighbour: Listener, killed_s: float) -> dict[str, float]:
    """The neighbour's longest, before and after. Raises InvalidRound where its stream has ended."""
    time.sleep(max(0.0, killed_s + WATCHED_S - time.monotonic()))
    if neighbour.ended_s is not None:
        raise InvalidRound(f"the neighbour's stream ended: {neighbour.errors}")
    return {
        "neighbour_longest_pause_before_s": longest_pause(neighbour.times_s, killed_s - WATCHED_S, killed_s),
        "neighbour_longest_pause_after_s": longest_pause(neighbour.times_s, killed_s, killed_s + WATCHED_S),
    }


def longest_pause(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    """Between two responses, of which the later came in this time; all of it where none did."""
    pauses = [later - earlier for earlier, later in pairwise(times_s) if begin_s <= later < end_s]
    return max(pauses, default=end_s - begin_s)


if __name__ == "__main__":
    sys.exit(harness.main(WorkerDeathBenchmark(), "perf.worker_death"))
