"""One Llama-shaped checkpoint of random bytes in every form that a rival reads: made once into the cache, by its seed.

The tensors are those of TinyLlama-1.1B: 201 in bfloat16, 2.2 GB. Their bytes are random bits, so nothing compresses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from serverless_triton.backend.package_cache import cache_directory, ensure_entry
from serverless_triton.loader import hash_checkpoint, repack_checkpoint
from serverless_triton.loader.checkpoint import INDEX_NAME, SINGLE_NAME

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's sizes. `shards` is how many files its sharded form has, at most.

    `computes`: its numbers are of the size that trained weights have, instead of any 16 bits, NaN among them.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int
    shards: int = 5
    computes: bool = False

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in layer order."""
        hidden, intermediate = self.hidden, self.intermediate
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (self.key_value, hidden),
            "self_attn.v_proj": (self.key_value, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for number in range(self.layers):
            for name, shape in layer.items():
                yield f"model.layers.{number}.{name}.weight", shape
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)


# Of bfloat16: where the exponent is not, and what two numbers are.
SIGN_AND_MANTISSA, TWO_TO_THE_MINUS_6, ONE = 0x807F, 121 << 7, 127 << 7

LLAMA_1B = Shape(name="llama-1.1b", layers=22, hidden=2048, intermediate=5632, key_value=256, vocabulary=32000)
LLAMA_130M = Shape(name="llama-130m", layers=6, hidden=1024, intermediate=2816, key_value=128, vocabulary=32000)
TINY = Shape(name="tiny", layers=2, hidden=64, intermediate=176, key_value=16, vocabulary=1000, shards=2)


def make_tensors(shape: Shape, seed: int) -> Tensors:
    """Random bits, the same for the same seed; of a shape that computes only signs and mantissas are random."""
    import numpy as np
    import torch

    source = np.random.Generator(np.random.SFC64(seed))
    tensors = {}
    for name, sizes in shape.tensors():
        bits = source.integers(0, 1 << 16, size=sizes, dtype=np.uint16)
        if shape.computes:
            bits &= np.uint16(SIGN_AND_MANTISSA)
            bits |= np.uint16(TWO_TO_THE_MINUS_6)
            if len(sizes) == 1:
                bits.fill(ONE)
        tensors[name] = torch.from_numpy(bits).view(torch.bfloat16)
    return tensors


def forms_in_cache(shape: Shape, seed: int) -> Forms:
    return Forms(folder=cache_directory() / "perf-loader" / f"{shape.name}-seed{seed}", shape=shape, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """A checkpoint's folder; each form in it is made when it is first asked for. All of them hold the same tensors."""

    folder: Path
    shape: Shape
    seed: int

    def path(self, form: str) -> Path:
        """The file, or the directory of files, that a loader of that form is given."""
        name = NAMES[form]
        return ensure_entry(self.folder / form, lambda entry: _WRITERS[form](self, entry / name), witness=name) / name

    def files(self, form: str) -> tuple[Path, ...]:
        """Those that hold tensors, in order."""
        path = self.path(form)
        return tuple(sorted(path.glob("*.safetensors"))) if path.is_dir() else (path,)


def _write_single(forms: Forms, target: Path) -> None:
    """As a download that was hashed once."""
    from safetensors.torch import save_file

    target.mkdir()
    save_file(make_tensors(forms.shape, forms.seed), target / SINGLE_NAME, metadata={"format": "pt"})
    hash_checkpoint(target)


def _write_unhashed(forms: Forms, target: Path) -> None:
    """The same file on disk under another name, with nothing beside it to compare its bytes with."""
    target.mkdir()
    (target / SINGLE_NAME).hardlink_to(forms.path("single") / SINGLE_NAME)


def _write_sharded(forms: Forms, target: Path) -> None:
    from safetensors.torch import save_file

    target.mkdir()
    tensors = _tensors_of(forms)
    shards = divided(tensors, forms.shape.shards)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file({key: tensors[key] for key in shard}, target / name, metadata={"format": "pt"})
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (target / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hash_checkpoint(target)


def divided(tensors: Tensors, parts: int) -> list[list[str]]:
    """Names in their order, in `parts` runs of about the same number of bytes."""
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[list[str]] = [[] for _ in range(parts)]
    before_bytes = 0
    for name, tensor in tensors.items():
        shards[before_bytes * parts // total_bytes].append(name)
        before_bytes += tensor.nbytes
    return [shard for shard in shards if shard]


def _write_repacked(forms: Forms, target: Path) -> None:
    repack_checkpoint(forms.path("single"), target)


def _write_torch(forms: Forms, target: Path) -> None:
    import torch

    torch.save(_tensors_of(forms), target)


def _write_tensorizer(forms: Forms, target: Path) -> None:
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(target))
    serializer.write_state_dict(_tensors_of(forms))
    serializer.close()


def _tensors_of(forms: Forms) -> Tensors:
    from safetensors.torch import load_file

    tensors: Tensors = load_file(forms.path("single") / SINGLE_NAME)
    return tensors


NAMES = {
    "single": "checkpoint",
    "unhashed": "checkpoint",
    "sharded": "checkpoint",
    "repacked": "checkpoint",
    "torch": "model.pt",
    "tensorizer": "model.tensors",
}
_WRITERS: Mapping[str, Callable[[Forms, Path], None]] = {
    "single": _write_single,
    "unhashed": _write_unhashed,
    "sharded": _write_sharded,
    "repacked": _write_repacked,
    "torch": _write_torch,
    "tensorizer": _write_tensorizer,
}
