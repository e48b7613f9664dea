"""Exact mode: every number of a token's pass is independent of the batch around it and of how its prefix was fed.

Kernels round differently for different shapes, so a recomputed KV differs in its last bits from a decoded one, and in
bfloat16 half of all resumed streams soon say something else. Here a product is either our own, whose rows do not depend
on one another (`products.py`), or has the same number of rows as all others, the tokens of a step padded to it; queries
attend in tiles of one shape, to a length that follows from their position alone, masked (`batch.py`). That this is
enough is no theorem, so it is promised only where it has been tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import transformers
from transformers.pytorch_utils import Conv1D

from serverless_triton.backend.engines.contract import ContractFacts
from serverless_triton.backend.engines.torch.kv_memory import KV_ALIGNMENT_TOKENS
from serverless_triton.backend.engines.torch.products import (
    KERNELS,
    own_product_of,
    own_products_available,
    together,
    with_few_rows,
)

TILE = 16
RECIPE = "3"  # of this engine's own arithmetic: whatever changes a bit changes it
_SAMPLES, _SAMPLE_ELEMENTS = 32, 16  # of a tensor: each touches a page, and a cold start waits for that
MODES = ("auto", "exact", "fast")
# Instruction sets that choose other kernels than the vector width alone would.
_KERNEL_SETS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "sve_bf16")

Product = Callable[[torch.Tensor], torch.Tensor]
Runs = Sequence[tuple[torch.device, int]]  # devices in order, and how many of a model's parts each has


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the exact suite's verdict is about. On other ground other kernels run."""

    platform: str
    architecture: str
    dtype: torch.dtype
    threads: int

    def __str__(self) -> str:
        dtype, threads = str(self.dtype).removeprefix("torch."), "thread" if self.threads == 1 else "threads"
        return f"{self.architecture} in {dtype} on {self.platform}, {self.threads} {threads}"


_EPYC = "AMD EPYC AVX512 avx512_bf16"
# Where all of tests/exact has passed.
PROVEN = frozenset(
    Ground(platform=_EPYC, architecture=architecture, dtype=dtype, threads=threads)
    for architecture, dtype, threads in (("llama", torch.bfloat16, 1), ("llama", torch.float32, 1))
)


def platform_of(device: torch.device) -> str:
    """What chooses the kernels: of a CPU, its name and its vector instructions."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        sets = [name for name in _KERNEL_SETS if capabilities.get(name)]
        name = capabilities.get("cpu_name") or capabilities["architecture"]
        return " ".join([name, torch.backends.cpu.get_cpu_capability(), *sets])
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def proven(ground: Ground) -> bool:
    return ground in PROVEN


def decide(mode: str, ground: Ground) -> tuple[bool, str]:
    """Whether the engine is to run exactly, and why it does or does not promise to."""
    if mode == "fast":
        return False, "mode is fast"
    if proven(ground):
        return True, f"the exact suite has passed for {ground}"
    return mode == "exact", f"the exact suite has not passed for {ground}"


def platform_of_all(runs: Runs) -> str:
    """Of the devices that a model spans."""
    return " + ".join(platform_of(device) for device, _ in runs)


def facts_of(
    checkpoint: Mapping[str, Sequence[str]],
    *,
    config: str,
    tokenizer: str,
    dtype: torch.dtype,
    runs: Runs,
    exact: bool,
) -> ContractFacts:
    """What decides the bits of this engine's tokens, for engines that are to be its equals."""
    kinds = [device.type if len(runs) == 1 else f"{device.type} {parts}" for device, parts in runs]
    return ContractFacts(
        checkpoint=checkpoint,
        config=config,
        tokenizer=tokenizer,
        engine="torch",
        versions={
            "engine": RECIPE,
            "products": KERNELS if own_products_available() else "torch",
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        instruction_set=platform_of_all(runs),
        device=" + ".join(kinds),
        dtype=str(dtype),
        tile_rows=TILE if exact else 0,
        kv_alignment_tokens=KV_ALIGNMENT_TOKENS if exact else 0,
        threads=torch.get_num_threads(),
    )


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes, and samples from all of each tensor: for checkpoints without hashes of their chunks.

    Two that differ in few places may have the same one. To read all of a large model would cost a start a tenth of a
    second.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        for part in _samples(tensor.detach().reshape(-1)):
            digest.update(part.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _samples(flat: torch.Tensor) -> Sequence[torch.Tensor]:
    """All of a small tensor; of another pieces at equal distances, and its end."""
    distance = len(flat) // _SAMPLES
    if distance < _SAMPLE_ELEMENTS:
        return (flat,)
    spread = flat[: _SAMPLES * distance].view(_SAMPLES, distance)
    return spread[:, :_SAMPLE_ELEMENTS], flat[-_SAMPLE_ELEMENTS:]


def set_products(model: Any, *, exact: bool, rows: int = TILE) -> None:
    """From now on the Linears of this model compute by own kernels, where there are some for their weights.

    In exact mode every other Linear and Conv1D, the head included, computes `rows` rows at a time.
    """
    owns = {module: found for module in model.modules() if (found := own_product_of(module)) is not None}
    forwards: dict[Any, Product] = {**owns, **together(model, owns)}
    for module in model.modules():
        own = forwards.get(module)
        if own is not None:
            module.forward = own if exact else with_few_rows(own, module.forward)
        elif exact and (product := _product_of(module)) is not None:
            module.forward = _tiled(product, rows)


def _product_of(module: Any) -> Product | None:
    if isinstance(module, torch.nn.Linear):
        return lambda rows: functional.linear(rows, module.weight, module.bias)
    if isinstance(module, Conv1D):
        return lambda rows: torch.addmm(module.bias, rows, module.weight)
    return None


def _tiled(product: Product, tile: int) -> Product:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = len(rows)
        if count % tile:
            rows = functional.pad(rows, (0, 0, 0, -count % tile))
        parts = [product(part) for part in torch.split(rows, tile)]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        return outputs[:count].view(*inputs.shape[:-1], outputs.shape[-1])

    return forward
