"""A fake engine loads as long, runs as fast and fails as a model's configuration says."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from serverless_triton.backend.engines.fake import FakeEngine, FakeEngineBuilder
from serverless_triton.backend.engines.fake_options import FakeFault, FakeOptions, after, paced
from serverless_triton.backend.engines.protocol import (
    EngineSettings,
    GenerationRequest,
    ModelNotSupported,
    TokenEvent,
)


def build(**options: Any) -> FakeEngine:
    engine = FakeEngineBuilder().build("nowhere", {}, settings=EngineSettings(options=options))
    engine.submit(GenerationRequest(request=1, text="hello", sampling_parameters={"max_tokens": 8}))
    return engine


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": 1}, "engine_options.speed is unknown; the fake engine has load_s, tokens_per_s, fault, fault_after"),
        ({"load_s": -1}, "engine_options.load_s is -1; use a number from 0"),
        ({"tokens_per_s": "fast"}, "engine_options.tokens_per_s is 'fast'; use a number from 0"),
        ({"tokens_per_s": float("inf")}, "use a number from 0"),
        ({"load_s": True}, "use a number from 0"),
        ({"fault_after_steps": 1.5}, "engine_options.fault_after_steps is 1.5; use a whole number from 0"),
        ({"tokens": "random"}, "engine_options.tokens is 'random'; use one of hash, time"),
        ({"fault": "explodes"}, "engine_options.fault is 'explodes'; use one of none, load_fails, step_fails"),
    ],
)
def test_options_that_make_no_sense_are_named_with_what_would(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelNotSupported, match=words):
        build(**options)


def test_without_options_nothing_is_slow_or_wrong() -> None:
    assert FakeOptions.parse({}) == FakeOptions(load_s=0.0, tokens_per_s=0.0, fault="none", fault_after_steps=0)


def test_loading_takes_as_long_as_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("serverless_triton.backend.engines.fake_options.time.sleep", slept.append)
    build(load_s=2.5)
    assert slept == [2.5]


def test_a_load_fails_when_it_is_told_to() -> None:
    with pytest.raises(FakeFault, match="told not to load"):
        build(fault="load_fails")


def test_a_pace_is_kept_by_waiting_in_each_step() -> None:
    slept: list[float] = []
    engine = FakeEngine(max_sequence_tokens=64, max_streams=2, pause=paced(50.0, slept.append))
    engine.submit(GenerationRequest(request=1, text="hello", sampling_parameters={"max_tokens": 3}))
    while engine.has_work:
        engine.step()
    assert slept == [0.02] * 3


def test_a_step_fails_once_enough_have_gone_well() -> None:
    engine = build(fault="step_fails", fault_after_steps=2)
    engine.step()
    engine.step()
    with pytest.raises(FakeFault, match="told to fail"):
        engine.step()


def test_what_happens_after_so_many_steps_happens_in_each_from_then_on() -> None:
    happened: list[int] = []
    pause = after(2, lambda: happened.append(1))
    for _ in range(5):
        pause()
    assert len(happened) == 3


def test_tokens_tell_the_time_at_which_they_were_made() -> None:
    engine, told, texts = build(tokens="time"), [], []
    before_us = time.monotonic_ns() // 1000
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, TokenEvent)
            told += event.output_ids
            texts.append(event.text)
    after_us = time.monotonic_ns() // 1000
    assert len(told) == len("".join(texts)) == 8
    assert all((token - before_us) % 2**31 <= after_us - before_us for token in told)
    assert engine.exactness.kind == "best_effort"


def test_a_stream_of_times_goes_on_from_those_it_had() -> None:
    engine = FakeEngineBuilder().build("nowhere", {}, settings=EngineSettings(options={"tokens": "time"}))
    resumed = GenerationRequest(
        request=1, text="hello", resume_token_ids=[2**31 - 1, 5], sampling_parameters={"max_tokens": 3}
    )
    engine.submit(resumed)
    (event,) = engine.step()
    assert isinstance(event, TokenEvent)
    assert (event.first_position, event.finish_reason) == (2, "length")


@pytest.mark.parametrize(("fault", "status"), [("dies", -9), ("hangs", None)])
def test_a_process_dies_or_hangs_when_it_is_told_to(fault: str, status: int | None) -> None:
    program = (
        "from serverless_triton.backend.engines.fake_options import FakeOptions;"
        f"pause = FakeOptions(fault={fault!r}, fault_after_steps=1).pause();"
        "pause(); print('well', flush=True); pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"well\n"
        if status is None:
            assert child.poll() is None
            child.kill()
        else:
            assert child.wait(10) == status
