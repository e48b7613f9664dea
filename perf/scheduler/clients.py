"""Clients in a process of their own: `python -m perf.scheduler.clients`, the task on standard input, one JSON list of
outcomes on standard output.

Open loop: each request is sent when it is due, whatever became of those before. Closed loop: so many are under way at
any time, for so long. A client that hears no token within the timeout hangs up.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from perf import machine
from perf.harness import BenchmarkFailed
from perf.workloads import Request
from serverless_triton.scheduler.gateway.tensors import add_input, number_tensor, raw_outputs, string_tensor

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
TIMED_OUT = "TIMEOUT"
CONNECTIONS = 16
# After its first token an answer has this long; none of the workload takes a tenth of it.
REST_S = 120.0
# Between two requests of a closed loop where the first was refused at once.
REFUSED_PAUSE_S = 0.1
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs leaves it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`at_a_time` 0: open loop; else so many requests at a time, over and over, until `seconds` have passed."""

    address: str
    requests: tuple[Request, ...]
    timeout_s: float
    at_a_time: int = 0
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        told = json.loads(text)
        return cls(**{**told, "requests": tuple(Request(**request) for request in told["requests"])})


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request, in seconds since the task began. `startup_s` is None where no token came; `failure` says why."""

    model: str
    asked_s: float
    startup_s: float | None = None
    ended_s: float = 0.0
    tokens: int = 0
    failure: str = ""
    receipt: dict[str, Any] = field(default_factory=dict)  # the gateway's own of its start, without spans


def run_clients(task: Task) -> list[Outcome]:
    """Raises BenchmarkFailed."""
    longest_s = (task.seconds or task.requests[-1].arrival_s) + task.timeout_s + REST_S
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "perf.scheduler.clients"],
            input=task.to_json(),
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
            timeout=longest_s + 30.0,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"the clients did not end within {longest_s:.0f} s") from error
    if finished.returncode:
        last_lines = "\n".join(finished.stderr.strip().splitlines()[-5:])
        raise BenchmarkFailed(f"the clients failed ({finished.returncode}): {last_lines}")
    return [Outcome(**one) for one in json.loads(finished.stdout.splitlines()[-1])]


class Clients:
    """All of one task. `outcomes` are in the order of asking."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._began_s = time.monotonic()
        self.outcomes: list[Outcome] = []

    async def run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # with a connection of its own
        channels = [grpc.aio.insecure_channel(self._task.address, options=options) for _ in range(CONNECTIONS)]
        self._channels = cycle(channels)
        self._began_s = time.monotonic()
        await (self._closed() if self._task.at_a_time else self._open())
        await asyncio.gather(*(channel.close(None) for channel in channels))

    async def _open(self) -> None:
        asking = []
        for request in self._task.requests:
            await asyncio.sleep(max(0.0, request.arrival_s - self._now_s()))
            asking.append(asyncio.ensure_future(self._ask(request)))
        await asyncio.gather(*asking)

    async def _closed(self) -> None:
        requests = cycle(self._task.requests)
        await asyncio.gather(*(self._keep_asking(requests) for _ in range(self._task.at_a_time)))

    async def _keep_asking(self, requests: Iterator[Request]) -> None:
        while self._now_s() < self._task.seconds:
            if (await self._ask(next(requests))).failure:
                await asyncio.sleep(REFUSED_PAUSE_S)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _ask(self, request: Request) -> Outcome:
        outcome = Outcome(model=request.model, asked_s=self._now_s())
        self.outcomes.append(outcome)
        ask: Any = next(self._channels).unary_stream(METHOD, None, None)  # one request's stream; bytes as they are
        call = ask(message_of(request), wait_for_ready=True)
        try:
            await asyncio.wait_for(self._hear_first(call, outcome), self._task.timeout_s)
            await asyncio.wait_for(self._hear_rest(call, outcome), REST_S)
        except (asyncio.TimeoutError, _Failed, grpc.aio.AioRpcError) as error:
            outcome.failure = _name_of(error)
            call.cancel()
        outcome.ended_s = self._now_s()
        return outcome

    async def _hear_first(self, call: Any, outcome: Outcome) -> None:
        while outcome.startup_s is None:
            message = await call.read()
            if message is _EOF:
                raise _Failed("NO_TOKEN")
            self._take(message, outcome)

    async def _hear_rest(self, call: Any, outcome: Outcome) -> None:
        while (message := await call.read()) is not _EOF:
            self._take(message, outcome)

    def _take(self, message: bytes, outcome: Outcome) -> None:
        said = pb.ModelStreamInferResponse.FromString(message)
        if said.error_message:
            raise _Failed(said.error_message)
        response = said.infer_response
        outcome.tokens += len(raw_outputs(response).get("output_ids", b"")) // 4
        if outcome.tokens and outcome.startup_s is None:
            outcome.startup_s = self._now_s() - outcome.asked_s
        if "receipt" in response.parameters and not outcome.receipt:
            first = json.loads(response.parameters["receipt"].string_param)[0]
            outcome.receipt = {name: value for name, value in first.items() if name not in ("spans", "critical_path")}


class _Failed(Exception):
    """What the server said instead of a token."""


def _name_of(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return TIMED_OUT
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)


def message_of(request: Request) -> bytes:
    """With a receipt asked for."""
    asked = pb.ModelInferRequest(model_name=request.model)
    add_input(asked, string_tensor("text_input", request.prompt.encode()))
    add_input(asked, number_tensor("stream", "BOOL", [True]))
    parameters = {"max_tokens": request.output_tokens, "ignore_eos": True}
    add_input(asked, string_tensor("sampling_parameters", json.dumps(parameters).encode()))
    asked.parameters["return_receipt"].bool_param = True
    asked.outputs.add(name="text_output")
    asked.outputs.add(name="output_ids")
    message: bytes = asked.SerializeToString()
    return message


def main(text: str) -> list[dict[str, Any]]:
    clients = Clients(Task.from_json(text))
    asyncio.run(clients.run())
    return [asdict(outcome) for outcome in clients.outcomes]


if __name__ == "__main__":
    print(json.dumps(main(sys.stdin.read())))
