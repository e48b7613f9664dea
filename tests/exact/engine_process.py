"""A process with one engine: reads a JSON object of work from standard input, prints what each request generated.

{"checkpoint": ..., "settings": {...}, "requests":
    [{"at": 3, "input_ids": [1], "resume": [5, 6, 7], "rounds": [[1, 2]], "sampling": {"max_tokens": 9}}]}
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file

from serverless_triton.backend.engines.protocol import (
    CatchUpRequest,
    EngineSettings,
    GenerationRequest,
    Reservation,
    TokenEvent,
)
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder
from serverless_triton.backend.engines.torch.engine import TorchEngine

Asked = GenerationRequest | CatchUpRequest


def main() -> None:
    work = json.load(sys.stdin)
    settings = EngineSettings(**work["settings"])
    torch.set_num_threads(settings.threads)
    tensors = load_file(f"{work['checkpoint']}/model.safetensors")
    engine = TorchEngineBuilder().build(work["checkpoint"], tensors, settings=settings)
    json.dump(run(engine, work["requests"]), sys.stdout)


def run(engine: TorchEngine, requests: list[dict[str, Any]]) -> list[list[int]]:
    """Each request comes before the step `at`. Returns what was generated after `resume`.

    One with `rounds` is caught up before: at each of these steps up to that many of its `resume`.
    """
    answers: list[list[int]] = [[] for _ in requests]
    calls = [call for number, asked in enumerate(requests) for call in calls_of(number, asked, len(requests))]
    coming = sorted(calls, key=lambda call: call[0], reverse=True)
    step = 0
    while coming or engine.has_work:
        while coming and coming[-1][0] <= step:
            ask(engine, coming.pop()[1])
        for event in engine.step():
            if isinstance(event, TokenEvent) and event.request < len(requests):
                answers[event.request] += event.output_ids
        step += 1
    return answers


def calls_of(number: int, asked: dict[str, Any], requests: int) -> list[tuple[int, Asked]]:
    """By the step that each comes before. Rounds are numbered after all requests."""
    given: Any = {"input_ids": asked["input_ids"], "sampling_parameters": asked["sampling"]}
    rounds = asked.get("rounds", [])
    key = Reservation(stream=str(number), attempt=1)
    starts = [0, *(position for _, position in rounds)]
    calls: list[tuple[int, Asked]] = [
        (
            at,
            CatchUpRequest(
                request=requests + number + requests * i,
                reservation=key,
                resume_token_ids=asked["resume"][starts[i] : position],
                start_position=starts[i],
                **given,
            ),
        )
        for i, (at, position) in enumerate(rounds)
    ]
    resume = GenerationRequest(
        request=number, resume_token_ids=asked["resume"], reservation=key if rounds else None, **given
    )
    return [*calls, (asked["at"], resume)]


def ask(engine: TorchEngine, asked: Asked) -> None:
    if isinstance(asked, CatchUpRequest):
        engine.catch_up(asked)
    else:
        engine.submit(asked)


if __name__ == "__main__":
    main()
