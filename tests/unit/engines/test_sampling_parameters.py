"""What a client may write into sampling_parameters."""

import math
from typing import Any

import pytest

from serverless_triton.backend.engines.protocol import InvalidRequest
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters


def test_nothing_given_means_greedy_and_sixteen_tokens() -> None:
    parameters = SamplingParameters.parse({})
    assert (parameters.greedy, parameters.max_tokens, parameters.seed) == (True, 16, None)


def test_every_parameter_is_taken_over() -> None:
    given = {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["a", "bc"],
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
    }
    assert SamplingParameters.parse(given) == SamplingParameters(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        seed=3,
        max_tokens=9,
        min_tokens=2,
        stop=("a", "bc"),
        stop_token_ids=(4, 5),
        ignore_eos=True,
    )


def test_null_is_the_default_and_a_single_stop_string_a_list_of_one() -> None:
    assert SamplingParameters.parse({"top_p": None, "stop": "x"}).stop == ("x",)


def test_sampling_without_a_seed_draws_one() -> None:
    seeds = {SamplingParameters.parse({"temperature": 1}).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'top-k' is unknown; known are temperature, top_k, .*ignore_eos"):
        SamplingParameters.parse({"top-k": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 10**400),
        ("temperature", [[1.0]]),
        ("top_p", -(10**400)),
        ("top_p", math.nan),
        ("top_k", 10**400),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "7"),
        ("max_tokens", 0),
        ("max_tokens", 2.0),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("stop", 3),
        ("stop", [""]),
        ("stop", ["a", 1]),
        ("stop_token_ids", 3),
        ("stop_token_ids", [1, "2"]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", list(range(1025))),
        ("stop", ["x"] * 65),
        ("stop", "x" * 1025),
        ("stop", {"x": 1}),
        ("ignore_eos", 1),
    ],
)
def test_a_wrong_type_or_range_is_named_with_what_would_be_right(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{name}' is .*; use "):
        SamplingParameters.parse({name: value})


def test_values_of_any_depth_or_length_are_refused_without_being_printed() -> None:
    for name in ("temperature", "top_k", "seed"):
        with pytest.raises(InvalidRequest, match=f"'{name}' is a whole number of more than 64 bits; use "):
            SamplingParameters.parse({name: 10**5000})  # which Python refuses to print
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for name in ("temperature", "stop", "stop_token_ids", "seed"):
        with pytest.raises(InvalidRequest, match=f"'{name}' is a list of 1; use "):
            SamplingParameters.parse({name: deep})
    with pytest.raises(InvalidRequest) as caught:
        SamplingParameters.parse({"x" * 10_000: 1})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("given", "used"), [(0, 0.0), (5e-324, 0.01), (1e-310, 0.01), (0.02, 0.02), (100, 100.0)])
def test_a_temperature_that_is_almost_zero_counts_as_a_hundredth(given: float, used: float) -> None:
    assert SamplingParameters.parse({"temperature": given}).temperature == used


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens 5 is more than max_tokens 4"):
        SamplingParameters.parse({"min_tokens": 5, "max_tokens": 4})
