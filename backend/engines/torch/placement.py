"""A model whose parts lie on several devices: their tensors go there, and what a step hands on follows.

Whatever enters a part is moved to its device: the hidden states once a boundary; what every layer gets, such as rotary
embeddings, once a device and step. KV memory lies beside its layers (`SpannedKVMemory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.model_parts import layer_of, part_of


class Placement:
    """The devices of a model with so many layers, by its parts. Raises ModelNotSupported for shares of another model.

    A single part is all of the model.
    """

    def __init__(self, shares: Sequence[Share], layers: int) -> None:
        self._layers = layers
        self._devices = [torch.device(share.device) for share in shares for _ in range(share.parts)]
        if len(self._devices) == 1:
            self._devices *= layers + 3
        if len(self._devices) != layers + 3:
            raise ModelNotSupported(
                f"a device map of {len(self._devices)} parts was made for this model of {layers} layers, which has "
                f"{layers + 3}; its checkpoint has other layers than its config.json says"
            )
        if len({device.type for device in self._devices}) > 1:
            raise ModelNotSupported(f"a model spans devices of one kind, not {', '.join(sorted(self._names()))}")

    @property
    def home(self) -> torch.device:
        """Where the embedding is, and with it whatever has no weights."""
        return self._devices[0]

    @property
    def end(self) -> torch.device:
        """Where the hidden states leave the last norm."""
        return self._devices[self._layers + 1]

    @property
    def spans(self) -> bool:
        return len(self._names()) > 1

    def runs(self) -> list[tuple[torch.device, int]]:
        """How many of the parts, in order, each device has."""
        return _runs(self._devices)

    def layer_runs(self) -> list[tuple[torch.device, int]]:
        """How many of the layers, in order, each device has."""
        return _runs(self._devices[1 : self._layers + 1])

    def device_of(self, name: str) -> torch.device:
        """Where the checkpoint's tensor of this name belongs."""
        return self._devices[part_of(name, self._layers)]

    def connect(self, model: Any) -> None:
        """Have what enters each part of this model, whose weights are in place, follow to its device."""
        crossings = _Crossings()
        model.register_forward_pre_hook(lambda *_: crossings.clear())
        for unit in _units(model):
            device = next((parameter.device for parameter in unit.parameters()), self.home)
            _move_buffers(unit, device)
            unit.register_forward_pre_hook(crossings.into(device), with_kwargs=True)

    def _names(self) -> set[str]:
        return set(map(str, self._devices))


def _runs(devices: Sequence[torch.device]) -> list[tuple[torch.device, int]]:
    return [(device, len(list(parts))) for device, parts in groupby(devices)]


class _Crossings:
    """A step's copies of tensors on other devices, each made once."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def clear(self) -> None:
        self._copies.clear()

    def into(self, device: torch.device) -> Any:
        def hook(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (
                tuple(self._on(value, device) for value in given),
                {name: self._on(value, device) for name, value in named.items()},
            )

        return hook

    def _on(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, tuple):
            return tuple(self._on(one, device) for one in value)
        if not isinstance(value, torch.Tensor) or value.device == device:
            return value
        key = (id(value), device)
        if key not in self._copies:
            self._copies[key] = (value, value.to(device))  # the original too: nothing else may get its id meanwhile
        return self._copies[key][1]


def _units(model: Any) -> Iterator[Any]:
    """What is moved as one: each layer, and outside of them each module that computes by itself."""
    for name, module in model.named_modules():
        pieces = name.split(".")
        is_layer = pieces[-1].isdecimal() and layer_of(".".join(pieces[:-1])) is None
        if is_layer or (layer_of(name) is None and not list(module.children())):
            yield module


def _move_buffers(unit: Any, device: torch.device) -> None:
    for module in unit.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
