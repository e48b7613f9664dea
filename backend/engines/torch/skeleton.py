"""A Hugging Face causal LM without its weights: built from config.json on the meta device, then given tensors.

Building costs tens of milliseconds and needs no weights, so it happens ahead of time; giving it tensors costs a few.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.engines.sampling_parameters import shown
from serverless_triton.backend.engines.torch.attention import IMPLEMENTATION

CONFIG_FILES = ("config.json", "generation_config.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MOST_NAMES = 5
_MOST_LAYERS = 1000  # building more would take minutes and the machine's memory before any tensor is missed
_MOST = 2**31 - 1
# The figures that sizes are made of, as config.json spells them; a model that lacks one, or has it null, has a default.
_FIGURES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), _MOST_LAYERS),
    **dict.fromkeys(("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "head_dim"), _MOST),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "max_position_embeddings"), _MOST),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one tensor of the checkpoint belongs. Tied places share their `names`: any one of them fills all."""

    name: str
    names: tuple[str, ...]
    module: Any
    attribute: str
    meta: torch.Tensor
    buffer: bool


class Skeleton:
    """The model of one checkpoint, still without weights. `attach` gives it some, in place of any it had.

    `rehearsed`: a pass with all its layers has succeeded in this process or in the one that it was forked from, and
    found `window_tokens`, the shortest of their sliding windows.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.config: Any = _read_config(checkpoint)
        self.rehearsed = False
        self.window_tokens: int | None = None
        self._model = _build(checkpoint, self.config)
        self._places = _places(self._model)
        with _refusing(f"{checkpoint}/config.json cannot be used"):
            _restore_computed_buffers(self._model, checkpoint)
        self.eos_ids = frozenset(token for token in _eos_ids(checkpoint) if token < self.config.vocab_size)

    def dtype(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
        """The dtype to run in; `auto` is the config's, and where it has none, the first tensor's."""
        if name != "auto":
            return DTYPES[name]
        configured = getattr(self.config, "dtype", None)
        if isinstance(configured, torch.dtype):
            return configured
        return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)

    def attach(
        self,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        device_of: Callable[[str], torch.device] | None = None,
    ) -> Any:
        """The model with these weights, uncopied where they have this dtype and are where `device_of` their names says.

        Others are converted on their way: a device never holds one twice. Raises ModelNotSupported.
        """
        tensors = _with_prefix(tensors, self._model.base_model_prefix, {place.name for place in self._places})
        found = {place.name: _find(place, tensors) for place in self._places}
        self._check(found, tensors)
        parameters: dict[str, torch.nn.Parameter] = {}  # one for all places that a tensor fills, so that ties stay ties
        for place in self._places:
            name = found[place.name]
            assert name is not None
            tensor = tensors[name]
            device = tensor.device if device_of is None else device_of(name)
            if place.buffer:
                setattr(place.module, place.attribute, tensor.to(device))
                continue
            if name not in parameters:
                parameters[name] = torch.nn.Parameter(tensor.to(device, dtype), requires_grad=False)
            place.module._parameters[place.attribute] = parameters[name]
        self._move_computed_buffers(next(iter(parameters.values())).device)
        return self._model

    def attach_zeros(self, dtype: torch.dtype) -> Any:
        """The model with weights of zero that take no memory: all are views of one range that is never written to."""
        largest = max(place.meta.numel() for place in self._places)
        untouched = np.zeros(largest * dtype.itemsize, dtype=np.uint8)  # torch.zeros would write
        zeros = torch.from_numpy(untouched).view(dtype)
        return self.attach({p.name: zeros[: p.meta.numel()].view(p.meta.shape) for p in self._places}, dtype)

    def detach(self) -> None:
        """Let go of the weights."""
        for place in self._places:
            tensors = place.module._buffers if place.buffer else place.module._parameters
            tensors[place.attribute] = place.meta

    def _check(self, found: Mapping[str, str | None], tensors: Mapping[str, torch.Tensor]) -> None:
        missing = [place for place, name in found.items() if name is None]
        if missing:
            raise ModelNotSupported(f"the checkpoint lacks {_listed(missing)}, which {self._what} needs")
        known = {name for place in self._places for name in place.names}
        unexpected = [name for name in tensors if name not in known and not self._is_legacy(name)]
        if unexpected:
            raise ModelNotSupported(f"the checkpoint has {_listed(unexpected)}, which {self._what} has no place for")
        for place in self._places:
            tensor = tensors[found[place.name] or place.name]
            if tensor.shape != place.meta.shape:
                shapes = f"shape {list(tensor.shape)} where {self._what} needs {list(place.meta.shape)}"
                raise ModelNotSupported(f"the checkpoint's {place.name} has {shapes}")
            if not place.buffer and not tensor.is_floating_point():
                raise ModelNotSupported(f"the checkpoint's {place.name} is {tensor.dtype}, not of floats")

    @property
    def _what(self) -> str:
        return f"{type(self._model).__name__} as its config.json describes it"

    def _is_legacy(self, name: str) -> bool:
        """Older checkpoints store what models now compute, such as rotary frequencies and causal masks."""
        patterns: Any = self._model._keys_to_ignore_on_load_unexpected or ()
        if name.endswith((".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")):
            return True
        return any(re.search(pattern, name) for pattern in patterns)

    def _move_computed_buffers(self, device: torch.device) -> None:
        if device.type == "cpu":
            return
        for module, attribute in _computed_buffers(self._model):
            setattr(module, attribute, getattr(module, attribute).to(device))


def _read_config(checkpoint: Path) -> Any:
    if not (checkpoint / "config.json").is_file():
        raise ModelNotSupported(
            f"there is no file {checkpoint}/config.json; the torch engine serves Hugging Face checkpoints"
        )
    _check_figures(checkpoint / "config.json", _read_json(checkpoint / "config.json"))
    with _refusing(f"{checkpoint}/config.json cannot be used"):
        config: Any = AutoConfig.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelNotSupported(f"{checkpoint} is quantized; the torch engine runs float32, bfloat16 and float16")
    return config


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """For transformers' code, which raises whatever a config that it did not foresee leads to, assertions included."""
    try:
        yield
    except (ModelNotSupported, MemoryError):
        raise
    except Exception as error:
        raise ModelNotSupported(f"{what}: {type(error).__name__}: {error}") from error


def _check_figures(path: Path, values: Mapping[str, Any]) -> None:
    for name, most in _FIGURES.items():
        value = values.get(name)
        if value is None or isinstance(value, list):  # some architectures give one a layer
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise ModelNotSupported(f"{path}: {name} is {shown(value)}; use a whole number from 1 to {most}")


def _eos_ids(checkpoint: Path) -> frozenset[int]:
    """generation_config.json speaks before config.json; either may name one token or several. -1 stands for none."""
    for name in CONFIG_FILES[::-1]:
        eos = _read_json(checkpoint / name).get("eos_token_id")
        ids: list[Any] = eos if isinstance(eos, list) else [eos]
        if any(type(token) is not int for token in ids if eos is not None):
            raise ModelNotSupported(
                f"{checkpoint / name}: eos_token_id is {shown(eos)}; use a token id or a list of them"
            )
        if eos is not None:
            return frozenset(token for token in ids if token >= 0)
    return frozenset()


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    try:
        values: Any = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ModelNotSupported(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelNotSupported(f"{path} holds {shown(values)}; it must be a JSON object")
    return values


def _build(checkpoint: Path, config: Any) -> Any:
    with _refusing(f"{checkpoint}/config.json cannot be served by the torch engine"), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=IMPLEMENTATION, trust_remote_code=False
        )
    stateful = getattr(model, "_is_stateful", False) or any(isinstance(m, torch.nn.Conv1d) for m in model.modules())
    if stateful:  # its state is not in the KV memory, and neighbours in a flattened batch would flow into each other
        raise ModelNotSupported(f"{type(model).__name__} keeps state that is not keys and values; use another engine")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(getattr(config, name, None), int):
            raise ModelNotSupported(
                f"{checkpoint}/config.json has no {name}; the torch engine serves plain text models"
            )
    return model.eval()


def _places(model: Any) -> tuple[Place, ...]:
    named = [(name, tensor, False) for name, tensor in model.named_parameters(remove_duplicate=False)]
    persistent = set(model.state_dict(keep_vars=True))
    named += [(name, tensor, True) for name, tensor in model.named_buffers() if name in persistent]
    tied: dict[int, list[str]] = {}
    for name, tensor, _ in named:
        tied.setdefault(id(tensor), []).append(name)
    return tuple(
        Place(
            name=name,
            names=tuple(tied[id(tensor)]),
            module=model.get_submodule(name.rpartition(".")[0]),
            attribute=name.rpartition(".")[2],
            meta=tensor,
            buffer=buffer,
        )
        for name, tensor, buffer in named
    )


def _computed_buffers(model: Any) -> Iterator[tuple[Any, str]]:
    for module in model.modules():
        for attribute in sorted(module._non_persistent_buffers_set):
            if module._buffers[attribute] is not None:
                yield module, attribute


def _restore_computed_buffers(model: Any, checkpoint: Path) -> None:
    """Buffers that no checkpoint holds got no values on the meta device: transformers' initialisation fills them in."""
    zeros, ones = _initialised(model, 0), _initialised(model, 1)
    unknown = [name for name, value in zeros.items() if not torch.equal(value, ones[name])]
    if unknown:
        raise ModelNotSupported(f"{checkpoint}: the torch engine cannot compute {_listed(unknown)}")


def _initialised(model: Any, before: int) -> dict[str, torch.Tensor]:
    """The computed buffers after an initialisation that found them filled with `before`."""
    modules = {id(module): module for module, _ in _computed_buffers(model)}
    for module, attribute in _computed_buffers(model):
        module._buffers[attribute] = torch.full_like(module._buffers[attribute], before, device="cpu")
    with torch.no_grad():
        for module in modules.values():
            model._init_weights(module)
    return {f"{type(m).__name__}.{name}": m._buffers[name].clone() for m, name in _computed_buffers(model)}


def _find(place: Place, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name under which the checkpoint has it: of a tie it may hold both ends, and they may differ."""
    return next((name for name in (place.name, *place.names) if name in tensors), None)


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str, wanted: set[str]) -> Mapping[str, torch.Tensor]:
    """Some checkpoints (GPT-2's) hold the base model, whose names lack the prefix that the causal LM gives it."""
    if any(name in wanted for name in tensors):
        return tensors
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
