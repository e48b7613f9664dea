"""What exact mode does to a model, and what an engine promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from serverless_triton.backend.engines.contract import ContractFacts
from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest, ModelNotSupported
from serverless_triton.backend.engines.torch import exact
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder
from serverless_triton.backend.engines.torch.exact import (
    TILE,
    Ground,
    decide,
    facts_of,
    fingerprint,
    platform_of,
    set_products,
)

CPU = torch.device("cpu")


def linear() -> torch.nn.Module:
    return torch.nn.Linear(96, 80, dtype=torch.bfloat16)


def conv1d() -> torch.nn.Module:
    return Conv1D(80, 96).to(torch.bfloat16)


@pytest.mark.parametrize("make", [linear, conv1d])
@torch.no_grad()
def test_a_row_comes_out_the_same_whatever_is_beside_it(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    module = make()
    rows = torch.randn(1, 70, 96, dtype=torch.bfloat16)
    untouched = module(rows)
    set_products(module, exact=True)
    whole = module(rows)
    assert whole.shape == untouched.shape
    assert torch.allclose(whole.float(), untouched.float(), atol=0.1)
    for first in range(0, 70, 7):
        for count in (1, 3, 20, 70 - first):
            assert torch.equal(module(rows[:, first : first + count]), whole[:, first : first + count])


@torch.no_grad()
def test_no_rows_give_no_rows() -> None:
    module = linear()
    set_products(module, exact=True)
    assert module(torch.zeros(1, 0, 96, dtype=torch.bfloat16)).shape == (1, 0, 80)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_every_product_of_a_model_has_the_same_rows_its_head_included(
    checkpoint: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows: set[int] = set()
    plain = exact._product_of

    def watched(module: Any) -> Any:
        product = plain(module)
        return product and (lambda part: rows.add(len(part)) or product(part))

    monkeypatch.setattr(exact, "_product_of", watched)
    engine = checkpoint(name).build(mode="exact")
    engine.submit(GenerationRequest(request=1, input_ids=[5] * 21, sampling_parameters={"max_tokens": 3}))
    while engine.has_work:
        engine.step()
    assert rows == {TILE}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "opt"])
def test_exact_mode_says_what_generate_says(checkpoint: Any, drive: Callable[..., Any], name: str) -> None:
    model = checkpoint(name)
    prompts = [[5, 9, 17, 200], list(range(40, 75))]
    requests = [
        GenerationRequest(request=i, input_ids=prompt, sampling_parameters={"max_tokens": 24})
        for i, prompt in enumerate(prompts)
    ]
    answers = drive(model.build(mode="exact"), requests)
    assert [answers[i].ids for i in range(2)] == [model.generate(prompt, 24) for prompt in prompts]


def ground(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Ground:
    threads = torch.get_num_threads()
    return Ground(platform=platform_of(CPU), architecture=architecture, dtype=dtype, threads=threads)


def test_auto_is_exact_only_on_proven_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "PROVEN", {ground()})
    assert decide("auto", ground()) == (True, f"the exact suite has passed for {ground()}")
    for other in (ground("gpt2"), ground(dtype=torch.bfloat16), replace(ground(), threads=64)):
        assert decide("auto", other) == (False, f"the exact suite has not passed for {other}")
        assert decide("exact", other) == (True, f"the exact suite has not passed for {other}")
    assert decide("fast", ground()) == (False, "mode is fast")


def test_ground_says_what_it_is() -> None:
    somewhere = Ground(platform="Some CPU AVX2", architecture="llama", dtype=torch.bfloat16, threads=1)
    assert str(somewhere) == "llama in bfloat16 on Some CPU AVX2, 1 thread"
    assert str(replace(somewhere, threads=2)).endswith("2 threads")


def test_instruction_sets_that_choose_other_kernels_are_part_of_a_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"architecture": "x86_64", "cpu_name": "Some CPU", "amx_bf16": True, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert platform_of(CPU) == "Some CPU AVX512 amx_bf16"


def test_an_engine_promises_exactness_only_on_proven_ground(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "PROVEN", {ground()})
    assert [llama.build(mode=mode).exactness.kind for mode in ("auto", "exact", "fast")] == [
        "exact",
        "exact",
        "best_effort",
    ]
    monkeypatch.setattr(exact, "PROVEN", set())
    assert llama.build(mode="exact").exactness.kind == "best_effort"


def test_a_contract_is_that_of_weights_and_mode(llama: Any) -> None:
    contract = llama.build(mode="exact").exactness.contract
    assert llama.build(mode="exact", max_streams=2).exactness.contract == contract
    assert llama.build(mode="fast").exactness.contract != contract
    other = {"model.norm.weight": llama.tensors["model.norm.weight"] + 1}
    assert llama.build(other, mode="exact").exactness.contract != contract


def test_a_fingerprint_is_that_of_names_shapes_and_values() -> None:
    tensors = {"a": torch.arange(3000.0), "b": torch.zeros(2, 3)}
    mine = fingerprint(tensors)
    assert fingerprint(dict(reversed(tensors.items()))) == mine
    others = (
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"], "b": tensors["b"].view(3, 2)},
        {"a": tensors["a"] + 1, "b": tensors["b"]},
        {"a": tensors["a"].double(), "b": tensors["b"]},
    )
    assert mine not in {fingerprint(other) for other in others}


def test_a_fingerprint_changes_with_what_lies_inside_a_tensor() -> None:
    rows = torch.zeros(1000, 64)
    edited = rows.clone()
    edited[10:990] += 1
    assert fingerprint({"a": edited}) != fingerprint({"a": rows})


def test_a_contract_is_that_of_the_chunks_where_their_digests_are_known(llama: Any) -> None:
    def contract(tensors: Any, digests: Any) -> str:
        settings = EngineSettings(dtype="float32", max_sequence_tokens=64, max_streams=1)
        builder = TorchEngineBuilder()
        return builder.build(str(llama.path), tensors, settings=settings, chunk_digests=digests).exactness.contract

    other = {**llama.tensors, "model.norm.weight": llama.tensors["model.norm.weight"] + 1}
    mine = contract(llama.tensors, {"model.safetensors": ("ab",)})
    assert contract(other, {"model.safetensors": ("ab",)}) == mine
    assert contract(llama.tensors, {"model.safetensors": ("cd",)}) != mine
    assert contract(llama.tensors, {}) != mine


CPU_RUNS = [(CPU, 1)]


def facts(runs: Any) -> ContractFacts:
    return facts_of({"a": ["11"]}, config="c", tokenizer="t", dtype=torch.float32, runs=runs, exact=True)


def test_a_contract_names_every_device_and_what_it_has() -> None:
    two = [torch.device("xpu:0"), torch.device("xpu:1")]
    assert (facts(CPU_RUNS).device, facts(CPU_RUNS).instruction_set) == ("cpu", platform_of(CPU))
    assert facts([(two[0], 9)]).device == "xpu"
    spanning = facts([(two[0], 5), (two[1], 4)])
    assert (spanning.device, spanning.instruction_set) == ("xpu 5 + xpu 4", "xpu + xpu")
    assert spanning.digest() != facts([(two[0], 4), (two[1], 5)]).digest()


def test_a_contract_is_that_of_the_libraries_that_compute_and_draw() -> None:
    assert set(facts(CPU_RUNS).versions) == {"engine", "products", "torch", "transformers", "numpy"}


def test_an_unknown_mode_is_refused(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match="mode 'quick' is unknown to the torch engine; use auto, exact, fast"):
        llama.build(mode="quick")
