"""The official OpenAI client, unmodified, through real Triton servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import NAMES

CHAT = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What are the three primary colours?"},
]
TOKENS = 48


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{cluster.http}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def expected(demo_model: Path) -> tuple[str, int]:
    """What transformers says to the same chat, greedy in float32, and how many tokens its prompt has."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        whole = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    length = prompt["input_ids"].shape[1]
    return str(tokenizer.decode(whole[0, length:], skip_special_tokens=True)), length


def test_models_are_listed_asleep_or_not(client: OpenAI) -> None:
    assert set(NAMES) <= {model.id for model in client.models.list()}


def test_a_cold_model_answers_a_chat_as_transformers_does(
    cluster: LocalCluster, client: OpenAI, expected: tuple[str, int]
) -> None:
    assert cluster.replicas("alpha") == []
    raw = client.chat.completions.with_raw_response.create(
        model="alpha", messages=CHAT, temperature=0, max_completion_tokens=TOKENS
    )
    answer = raw.parse()
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == expected
    (receipt,) = cluster.get(f"/v2/cluster/receipts/{raw.headers['Triton-Stream-Id']}")["receipts"]
    assert receipt["kind"] == "cold"


def test_a_streamed_chat_outlives_its_worker(cluster: LocalCluster, client: OpenAI, expected: tuple[str, int]) -> None:
    """It goes on from the ids of the prompt that the first worker made."""
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="alpha", messages=CHAT, temperature=0, max_tokens=400, stream=True, stream_options=options,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    chunks = [next(stream) for _ in range(12)]
    cluster.kill(cluster.serving("alpha")["worker_pid"])
    *rest, last = stream
    text = "".join(chunk.choices[0].delta.content or "" for chunk in [*chunks, *rest])
    assert text.startswith(expected[0])
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (expected[1], 400)
    assert rest[-1].choices[0].finish_reason == "length"
    kinds = [receipt["kind"] for receipt in cluster.get(f"/v2/cluster/receipts/{stream_id(stream)}")["receipts"]]
    assert kinds[-1] == "resumed"


def stream_id(stream: openai.Stream[object]) -> str:
    return str(stream.response.headers["Triton-Stream-Id"])


def test_a_seed_draws_the_same_text_and_another_one_another(client: OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model="beta", prompt="Once upon a time", seed=seed, n=2, max_tokens=24)
        return [choice.text for choice in answer.choices]

    first = ask(1)
    assert first == ask(1)
    assert first[1] == ask(2)[0] != first[0]  # the second choice of a seed is the first one of the next


def test_a_stop_ends_the_text_before_it(client: OpenAI) -> None:
    options = {"model": "beta", "prompt": "One, two, three,", "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(**options).choices[0].text
    stop = whole[6:9]
    stream = client.completions.create(**options, stop=[stop], stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_chat_that_is_too_long_is_a_bad_request(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "word " * 1000}]
    with pytest.raises(openai.BadRequestError, match="shorten the prompt"):
        client.chat.completions.create(model="beta", messages=messages)


def test_a_model_that_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist") as caught:
        client.chat.completions.create(model="nope", messages=CHAT)
    assert caught.value.code == "model_not_found"
