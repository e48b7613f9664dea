"""The fake keeps the engine's contract, so that what is tested with it holds with a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serverless_triton.backend.engines.fake import FakeEngine, FakeEngineBuilder, fake_token
from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest, InvalidRequest


def build(max_streams: int = 2) -> FakeEngine:
    builder = FakeEngineBuilder()
    builder.learn("nowhere", "auto")
    return builder.build("nowhere", {}, settings=EngineSettings(max_sequence_tokens=64, max_streams=max_streams))


def ask(request: int, text: str = "hello", resume: tuple[int, ...] = (), **sampling: Any) -> GenerationRequest:
    return GenerationRequest(request=request, text=text, resume_token_ids=resume, sampling_parameters=sampling)


def test_tokens_depend_on_prompt_and_position_alone(drive: Callable[..., Any]) -> None:
    answers = drive(build(max_streams=1), [ask(1, "one"), ask(2, "two"), ask(3, "one")])
    assert answers[1].ids == answers[3].ids != answers[2].ids
    assert answers[1].ids == [fake_token(b"one", position) for position in range(16)]
    assert answers[1].text == bytes(answers[1].ids).decode()


def test_a_resumed_stream_goes_on(drive: Callable[..., Any]) -> None:
    whole = drive(build(), [ask(1)])[1]
    for position in range(1, 16):
        answer = drive(build(), [ask(1, resume=tuple(whole.ids[:position]))])[1]
        assert whole.ids[:position] + answer.ids == whole.ids
        assert whole.text.endswith(answer.text)


def test_limits_and_stops_are_kept(drive: Callable[..., Any]) -> None:
    whole = drive(build(), [ask(1)])[1]
    answers = drive(build(), [ask(1, max_tokens=3), ask(2, stop=whole.text[4:7])])
    assert (len(answers[1].ids), answers[1].last.finish_reason) == (3, "length")
    assert (answers[2].text, answers[2].last.finish_reason) == (whole.text[: whole.text.index(whole.text[4:7])], "stop")


def test_slots_bound_what_runs_and_cancel_frees_them() -> None:
    engine = build(max_streams=1)
    engine.submit(ask(1))
    engine.submit(ask(2))
    assert [event.request for event in engine.step()] == [1]
    engine.cancel(1)
    assert [(event.request, event.finish_reason) for event in engine.step()] == [(1, "cancelled"), (2, None)]
    engine.close()
    assert not engine.has_work


def test_each_step_pauses_once() -> None:
    pauses = []
    engine = FakeEngine(max_sequence_tokens=64, max_streams=2, pause=lambda: pauses.append(1))
    engine.submit(ask(1, max_tokens=3))
    while engine.has_work:
        engine.step()
    assert len(pauses) == 3


def test_bad_requests_are_refused() -> None:
    engine = build()
    engine.submit(ask(1))
    for wrong in (ask(1), ask(2, ""), ask(2, "x" * 64), ask(2, temperature="hot")):
        with pytest.raises(InvalidRequest):
            engine.submit(wrong)
