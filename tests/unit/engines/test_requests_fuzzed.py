"""Whatever a client sends, an engine answers it: with InvalidRequest at once, or with events to the last."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_triton.backend.engines.fake import FakeEngine
from serverless_triton.backend.engines.protocol import GenerationRequest, InvalidRequest
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.engines.torch.sampling import draw

NAMES = ("temperature", "top_k", "top_p", "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos")
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}

numbers = st.one_of(
    st.integers(-2, 300),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, 2**64]),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from([5e-324, 1e-310, 1e-3]),
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
sound = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 100),
        "top_k": st.integers(-1, 300),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.integers(0, 2**63 - 1),
        "max_tokens": st.integers(1, 8),
        "min_tokens": st.integers(0, 8),
        "stop": st.lists(st.text(min_size=1, max_size=3), max_size=3),
        "stop_token_ids": st.lists(st.integers(0, 259), max_size=4) | st.just(list(range(260))),
        "ignore_eos": st.booleans(),
    },
)
wrong = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), anything, max_size=4)
sampling = st.one_of(sound, wrong, st.builds(lambda a, b: {**a, **b}, sound, wrong))
ids = st.none() | st.lists(st.integers(0, 259) | anything, max_size=12)
requests = st.builds(
    GenerationRequest,
    request=st.just(1),
    text=st.none() | st.text(st.characters(), max_size=8),
    input_ids=ids,
    resume_token_ids=ids.filter(lambda value: value is not None),
    sampling_parameters=sampling,
)


@pytest.fixture(scope="module")
def engines(checkpoint: Any) -> list[Any]:
    return [checkpoint("llama").build(max_sequence_tokens=24), FakeEngine(max_sequence_tokens=24, max_streams=2)]


@settings(max_examples=300, **FEW)
@given(requests)
def test_every_request_is_refused_or_answered(engines: list[Any], request_: GenerationRequest) -> None:
    for engine in engines:
        with contextlib.suppress(InvalidRequest):
            engine.submit(request_)
        last = None
        while engine.has_work:
            for last in engine.step():
                assert last.request == 1
        assert last is None or last.finish_reason in ("stop", "length")


@settings(max_examples=500, **FEW)
@given(sampling)
def test_parsing_refuses_or_returns_what_is_in_range(given_: dict[str, Any]) -> None:
    try:
        parameters = SamplingParameters.parse(given_)
    except InvalidRequest:
        return
    assert parameters.temperature == 0.0 or 0.01 <= parameters.temperature <= 100
    assert 0 < parameters.top_p <= 1
    assert 0 <= parameters.min_tokens <= parameters.max_tokens
    assert parameters.greedy or parameters.seed is not None


@settings(max_examples=300, **FEW)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(-torch.inf), min_size=1, max_size=40),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    sound,
)
def test_a_draw_is_always_a_token_that_may_come(logits: list[float], finite: float, given_: dict[str, Any]) -> None:
    given_ = {name: value for name, value in given_.items() if name not in ("min_tokens", "max_tokens")}
    values = torch.tensor([*logits, finite], dtype=torch.float32)
    token = draw(values, SamplingParameters.parse(given_), 0)
    assert values[token] > -torch.inf
