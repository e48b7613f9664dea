"""Workloads are their seed's, and have the rate, burstiness, popularity and lengths that they were asked for."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from perf.workloads import BadWorkload, Request, WorkloadSpec, generate, popularity, read_gsm8k

MODELS = tuple(f"model-{n}" for n in range(8))
SPEC = WorkloadSpec(seed=1, requests=4000, models=MODELS, rate_per_s=5.0)
SEEDS = range(5)


def gaps_s(requests: Sequence[Request]) -> list[float]:
    times = [0.0, *(request.arrival_s for request in requests)]
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_workload_and_another_seed_another(seed: int):
    spec = replace(SPEC, seed=seed, requests=50)
    assert generate(spec) == generate(spec)
    assert generate(spec) != generate(replace(spec, seed=seed + 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_longer_workload_begins_as_the_shorter(seed: int):
    spec = replace(SPEC, seed=seed, requests=50)
    assert generate(replace(spec, requests=80))[:50] == generate(spec)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_arrivals_have_the_rate_and_the_burstiness(seed: int, cv: float):
    gaps = gaps_s(generate(replace(SPEC, seed=seed, arrival_cv=cv)))
    assert min(gaps) >= 0.0
    assert 1 / fmean(gaps) == pytest.approx(SPEC.rate_per_s, rel=0.12)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("exponent", [0.0, 0.9, 1.5])
def test_models_have_their_share(seed: int, exponent: float):
    spec = replace(SPEC, seed=seed, zipf_exponent=exponent)
    counted = Counter(request.model for request in generate(spec))
    for model, share in zip(MODELS, popularity(spec), strict=True):
        assert counted[model] / spec.requests == pytest.approx(share, abs=0.03)
    assert sum(popularity(spec)) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_have_their_mean_and_their_bounds(seed: int):
    tokens = [request.output_tokens for request in generate(replace(SPEC, seed=seed))]
    assert fmean(tokens) == pytest.approx(SPEC.output_tokens_mean, rel=0.08)
    assert min(tokens) >= 1
    assert max(tokens) <= SPEC.max_output_tokens


def test_changing_one_thing_leaves_the_others_as_they_were():
    before, after = generate(SPEC), generate(replace(SPEC, zipf_exponent=2.0))
    assert [(r.arrival_s, r.prompt, r.output_tokens) for r in before] == [
        (r.arrival_s, r.prompt, r.output_tokens) for r in after
    ]


def test_synthetic_prompts_have_the_words_that_were_asked_for():
    words = [len(request.prompt.split()) for request in generate(replace(SPEC, prompt_words=(5, 7)))]
    assert set(words) == {5, 6, 7}


def test_prompts_come_from_a_gsm8k_file(tmp_path: Path):
    questions = ["How many apples?", "How many pears?"]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("\n".join(json.dumps({"question": q, "answer": "#### 3"}) for q in questions) + "\n")
    requests = generate(replace(SPEC, requests=100), read_gsm8k(file))
    assert {request.prompt for request in requests} == set(questions)


@pytest.mark.parametrize("text", ["", "{}\n", "How many?\n", "[1]\n"])
def test_a_file_that_is_no_gsm8k_is_named(tmp_path: Path, text: str):
    (tmp_path / "other.jsonl").write_text(text)
    with pytest.raises(BadWorkload, match=r"other\.jsonl"):
        read_gsm8k(tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("requests", "rate_per_s", "arrival_cv", "output_tokens_mean", "max_output_tokens")),
        {"models": ()},
        {"zipf_exponent": -1.0},
        {"prompt_words": (9, 3)},
        {"prompt_words": (0, 3)},
    ],
)
def test_workloads_that_make_no_sense_are_refused(changes: dict[str, object]):
    with pytest.raises(BadWorkload):
        replace(SPEC, **changes)
