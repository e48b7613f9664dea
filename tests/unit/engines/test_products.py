"""Own products in place of torch's: their values, what they leave to torch, and that a forked worker has them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from serverless_triton.backend.engines.protocol import GenerationRequest
from serverless_triton.backend.engines.torch import exact, products
from serverless_triton.backend.engines.torch.exact import set_products
from serverless_triton.backend.engines.torch.products import OwnProduct, Siblings, WrongOperand, own_product_of

has_own = pytest.mark.skipif(not products.own_products_available(), reason="the processor has no AVX512-BF16")


def linear(inputs: int = 96, outputs: int = 80, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(inputs * outputs)
    return torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


@has_own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 17), (576, 1536), (1536, 576), (64, 49)])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 70])
def test_it_is_the_product_that_float64_gives(inputs: int, outputs: int, rows: int, bias: bool) -> None:
    module = linear(inputs, outputs, bias=bias)
    taken = torch.randn(1, rows, inputs).to(torch.bfloat16)
    got = own_product_of(module)(taken)  # type: ignore[misc]
    true = torch.nn.functional.linear(taken.double(), module.weight.double(), module.bias.double() if bias else None)
    assert got.shape == true.shape
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.double(), true, rtol=1 / 128, atol=1e-3)


@has_own
def test_rows_that_do_not_lie_together_are_gathered() -> None:
    module, wide = linear(), torch.randn(2, 9, 192).to(torch.bfloat16)
    product = OwnProduct(module.weight, module.bias, threads=1)
    assert torch.equal(product(wide[..., ::2]), product(wide[..., ::2].contiguous()))
    assert product(wide[:, :0, :96]).shape == (2, 0, 80)


@has_own
def test_an_operand_that_would_be_misread_is_refused() -> None:
    module = linear()
    product = OwnProduct(module.weight, module.bias, threads=1)
    for wrong in (torch.zeros(3, 96), torch.zeros(3, 95, dtype=torch.bfloat16), torch.zeros((), dtype=torch.bfloat16)):
        with pytest.raises(WrongOperand, match="takes bfloat16 on the CPU"):
            product(wrong)
    half = torch.zeros(80, 192, dtype=torch.bfloat16)
    for weight, bias in ((half[:, ::2], None), (half.float(), None), (half[0], None), (half, half[0, :79])):
        with pytest.raises(WrongOperand, match=r"weight|bias"):
            OwnProduct(weight, bias, threads=1)


@has_own
def test_fast_mode_has_them_for_few_rows_and_exact_mode_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    plain = OwnProduct.__call__
    monkeypatch.setattr(OwnProduct, "__call__", lambda self, x: counts.append(x.shape[-2]) or plain(self, x))
    for is_exact, expected in ((False, [1, products.FEW_ROWS]), (True, [1, products.FEW_ROWS, 512])):
        counts.clear()
        module = linear()
        set_products(module, exact=is_exact)
        for rows in (1, products.FEW_ROWS, 512):
            assert module(torch.zeros(1, rows, 96, dtype=torch.bfloat16)).shape == (1, rows, 80)
        assert counts == expected


@has_own
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_siblings_computed_together_give_what_each_gives_alone(rows: int) -> None:
    alone = [OwnProduct(linear(96, outputs).weight, None, threads=2) for outputs in (80, 17, 333)]
    siblings = Siblings(alone)
    forwards = [siblings.forward_of(place) for place in range(3)]
    first, second = (torch.randn(1, rows, 96).to(torch.bfloat16) for _ in range(2))
    for place, inputs in ((0, first), (1, first), (2, first), (2, second), (2, second), (0, second), (1, first)):
        assert torch.equal(forwards[place](inputs), alone[place](inputs))


@has_own
def test_a_layer_has_one_call_for_those_that_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch.nn.ModuleDict({name: linear(96, 80) for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
    set_products(attention, exact=True)
    calls: list[int] = []
    plain = products._computed
    monkeypatch.setattr(products, "_computed", lambda many, x: calls.append(len(many)) or plain(many, x))
    inputs = torch.randn(1, 16, 96).to(torch.bfloat16)
    for child in attention.values():
        child(inputs)
    assert calls == [3, 1]


class NotPlain(torch.nn.Linear):
    """A Linear that may do something else."""


@pytest.mark.parametrize(
    "module",
    [linear(dtype=torch.float32), Conv1D(80, 96).to(torch.bfloat16), NotPlain(96, 80, dtype=torch.bfloat16)],
    ids=["float32", "Conv1D", "a subclass"],
)
def test_what_the_kernels_cannot_do_is_left_to_torch(module: Any) -> None:
    assert own_product_of(module) is None
    set_products(module, exact=False)
    assert "forward" not in vars(module)


def test_a_processor_without_the_instructions_leaves_all_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "own_products_available", lambda: False)
    module = linear()
    rows = torch.randn(1, 20, 96).to(torch.bfloat16)
    plain = module(rows)
    set_products(module, exact=False)
    assert torch.equal(module(rows), plain)
    set_products(module, exact=True)
    assert torch.equal(module(rows)[:, :5], module(rows[:, :5]))


@has_own
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_model_in_bfloat16_computes_by_them(
    checkpoint: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    rows: list[int] = []
    plain = OwnProduct.__call__
    monkeypatch.setattr(OwnProduct, "__call__", lambda self, x: rows.append(x.shape[-2]) or plain(self, x))
    engine = checkpoint("llama").build(mode=mode, dtype="bfloat16")
    engine.submit(GenerationRequest(request=1, input_ids=[5] * 21, sampling_parameters={"max_tokens": 3}))
    while engine.has_work:
        engine.step()
    assert rows


@has_own
def test_the_kernels_are_part_of_what_is_promised(
    checkpoint: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def contract() -> str:
        return checkpoint("llama").build(mode="exact").exactness.contract  # type: ignore[no-any-return]

    mine = contract()
    monkeypatch.setattr(exact, "own_products_available", lambda: False)
    assert contract() != mine


def bits(outputs: torch.Tensor) -> bytes:
    return outputs.view(torch.int16).numpy().tobytes()


@has_own
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_worker_computes_the_same(threads: int) -> None:
    module, rows = linear(576, 1536), torch.randn(1, 64, 576).to(torch.bfloat16)
    mine = OwnProduct(module.weight, module.bias, threads=2)(
        rows
    )  # its helpers are awake, and a child has none of them
    product = OwnProduct(module.weight, module.bias, threads)
    here, there = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: there.send_bytes(bits(product(rows))), daemon=True
    )
    worker.start()
    try:
        assert here.poll(30), "the worker waits for helpers that it does not have"
        assert here.recv_bytes() == bits(mine)
    finally:
        worker.kill()
        worker.join(10)
