"""The products of a model's Linear modules by the core's own kernels, where the processor has instructions for them.

They read bfloat16 weights where they lie, in the store's arena, and copy none. A row of outputs is the same to the bit
whatever rows are beside it, so exact mode needs no tiles for them; fast mode has them for few rows. All else (other
dtypes, devices, processors and modules) is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from serverless_triton.loader import _core

KERNELS = "avx512_bf16 1"  # part of the exactness contract: whatever changes a bit changes the number
# Children of one module that are given the same tensor, one after another.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
FEW_ROWS = 32  # torch packs the weights of each product: with 512 rows that pays, and its products take a fifth less


class WrongOperand(ValueError):
    """Memory that the kernels would misread."""


class OwnProduct:
    """Takes the place of a Linear's `forward`. Input [..., inputs] → [..., outputs], bfloat16 on the CPU.

    Holds on to weight and bias. Raises WrongOperand.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, threads: int) -> None:
        self._kept = (weight, bias)
        self._outputs, self._inputs = _shape_of(weight, bias)
        self.kernel = _core.Bf16Product(
            weight=weight.data_ptr(),
            bias=0 if bias is None else bias.data_ptr(),
            outputs=self._outputs,
            inputs=self._inputs,
            threads=threads,
        )

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return _computed([self], inputs)[0]

    @property
    def inputs(self) -> int:
        return self._inputs

    def new_outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Memory for the product of these."""
        shape = inputs.shape
        if inputs.dtype != torch.bfloat16 or inputs.device.type != "cpu" or not shape or shape[-1] != self._inputs:
            raise WrongOperand(
                f"a product of {self._inputs} inputs got {_described(inputs)}; it takes bfloat16 on the CPU, "
                f"[..., {self._inputs}]"
            )
        return inputs.new_empty((*shape[:-1], self._outputs))


class Siblings:
    """Products of one tensor, computed together when the first of them is asked for: a helper is woken once for all.

    The others' results wait until they are asked for that same tensor, which must not be written to meanwhile. One
    thread at a time. All take the same number of inputs.
    """

    def __init__(self, products: Sequence[OwnProduct]) -> None:
        self._products = products
        self._inputs: torch.Tensor | None = None
        self._waiting: dict[int, torch.Tensor] = {}

    def forward_of(self, place: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """In place of that one's own."""

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            outputs = self._waiting.pop(place, None) if inputs is self._inputs else None
            return self._compute(place, inputs) if outputs is None else outputs

        return forward

    def _compute(self, place: int, inputs: torch.Tensor) -> torch.Tensor:
        outputs = _computed(self._products, inputs)
        self._inputs, self._waiting = inputs, dict(enumerate(outputs))
        return self._waiting.pop(place)


def _computed(products: Sequence[OwnProduct], inputs: torch.Tensor) -> list[torch.Tensor]:
    outputs = [product.new_outputs(inputs) for product in products]
    rows = inputs if inputs.is_contiguous() else inputs.contiguous()
    _core.Bf16Product.compute_together(
        [product.kernel for product in products],
        rows.data_ptr(),
        inputs.numel() // inputs.shape[-1],
        inputs.shape[-1],
        [one.data_ptr() for one in outputs],
    )
    return outputs


def own_products_available() -> bool:
    return _core.has_bf16_products()


def own_product_of(module: Any) -> OwnProduct | None:
    """For a plain Linear whose weights the kernels can read; None leaves it to torch."""
    if type(module) is not torch.nn.Linear or not own_products_available():
        return None
    try:
        return OwnProduct(module.weight, module.bias, torch.get_num_threads())
    except WrongOperand:
        return None


def together(model: Any, owns: Mapping[Any, OwnProduct]) -> dict[Any, Callable[[torch.Tensor], torch.Tensor]]:
    """By module, for those of a model that are `SIBLINGS`."""
    found: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {}
    for parent in model.modules():
        for names in SIBLINGS:
            children = [getattr(parent, name, None) for name in names]
            products = [owns[child] for child in children if child in owns]
            if len(products) == len(names) and len({product.inputs for product in products}) == 1:
                siblings = Siblings(products)
                found.update((child, siblings.forward_of(place)) for place, child in enumerate(children))
    return found


def with_few_rows(
    own: Callable[[torch.Tensor], torch.Tensor], other: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[..., torch.Tensor]:
    """Own products for the rows of a decode step, another's for those of a prompt: faster, and not to the bit."""

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        has_few = inputs.numel() <= FEW_ROWS * inputs.shape[-1]
        return own(inputs) if has_few else other(inputs)

    return forward


def _shape_of(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[int, int]:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise WrongOperand(f"the {name} is {_described(tensor)}; it must be contiguous bfloat16 on the CPU")
        if tensor.data_ptr() % 2:
            raise WrongOperand(f"the {name} begins at an odd address")
    if weight.ndim != 2 or not weight.numel():
        raise WrongOperand(f"the weight is {_described(weight)}; it must be [outputs, inputs], neither of them 0")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise WrongOperand(f"the bias is {_described(bias)} beside {weight.shape[0]} outputs")
    return weight.shape[0], weight.shape[1]


def _described(tensor: torch.Tensor) -> str:
    where = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device.type}{where}"
