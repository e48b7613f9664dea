"""The exactness contract: whatever decides a token's bits changes the digest, and nothing else does."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from serverless_triton.backend.engines.contract import ContractFacts

FACTS = ContractFacts(
    checkpoint={"a.safetensors": ("11", "22"), "b.safetensors": ("33",)},
    config="cc",
    tokenizer="dd",
    engine="torch",
    versions={"engine": "1", "torch": "2.13.0"},
    instruction_set="AVX2",
    device="cpu",
    dtype="bfloat16",
    tile_rows=16,
    kv_alignment_tokens=64,
    threads=2,
    lora={"a": "ee"},
)


def test_equal_facts_have_one_digest_in_whatever_order_they_were_gathered():
    again = dataclasses.replace(
        FACTS,
        checkpoint={"b.safetensors": ["33"], "a.safetensors": ["11", "22"]},
        versions={"torch": "2.13.0", "engine": "1"},
    )
    assert again.digest() == FACTS.digest()
    assert re.fullmatch("[0-9a-f]{64}", FACTS.digest())


def test_the_digest_is_the_same_in_every_process_and_release():
    """Servers of different releases compare digests; a change of this one cuts every stream off from its like."""
    assert FACTS.digest() == "e847a4476a15b8defbcd87295dd6235755dec056257cd6170796eb402881621a"


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("checkpoint", {"a.safetensors": ("11", "22"), "b.safetensors": ("34",)}),
        ("checkpoint", {"a.safetensors": ("22", "11"), "b.safetensors": ("33",)}),
        ("checkpoint", {"a.safetensors": ("1122",), "b.safetensors": ("33",)}),
        ("checkpoint", {"a.safetensors": ("11", "22"), "c.safetensors": ("33",)}),
        ("config", "cd"),
        ("tokenizer", "de"),
        ("engine", "vllm"),
        ("versions", {"engine": "1", "torch": "2.13.1"}),
        ("instruction_set", "AVX512"),
        ("device", "NVIDIA H100 sm_90"),
        ("dtype", "float32"),
        ("tile_rows", 32),
        ("kv_alignment_tokens", 128),
        ("threads", 3),
        ("lora", {}),
    ],
)
def test_every_fact_counts(fact: str, value: Any):
    other = dataclasses.replace(FACTS, **{fact: value})
    assert other.digest() != FACTS.digest()


def test_equal_facts_have_one_digest():
    assert dataclasses.replace(FACTS, checkpoint=dict(FACTS.checkpoint)).digest() == FACTS.digest()
