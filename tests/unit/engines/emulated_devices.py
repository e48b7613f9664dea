"""Several devices on a machine that has one: torch's functions as they would be if `xpu:N` existed.

Every tensor's memory belongs to a device, and a function of tensors on two devices fails, as it does with real ones;
only `to` and `copy_` cross. What computes is the CPU, so results are those of one device, to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class EmulatedDevices(TorchFunctionMode):
    """Active as a context manager. `computed` counts the functions by device, `crossed` the copies between two, and
    `converted_there` what was converted on another device than the CPU, where it lies twice while that lasts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._homes: dict[int, torch.device] = {}
        self.computed: Counter[str] = Counter()
        self.crossed: Counter[tuple[str, str]] = Counter()
        self.converted_there = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self._home(args[0])
        if function is torch.Tensor.to:
            return self._to(*args, **kwargs)
        target = kwargs.get("device")
        if target is not None and torch.device(target).type != "meta":
            kwargs["device"] = CPU
        elif target is not None:
            return function(*args, **kwargs)
        homes = {self._home(tensor) for tensor in _tensors((args, kwargs)) if tensor.dim()}
        if len(homes) > 1:
            raise RuntimeError(f"{function.__name__}: tensors on {', '.join(sorted(map(str, homes)))}")
        result = function(*args, **kwargs)
        home = torch.device(target) if target is not None else next(iter(homes), CPU)
        self.computed[str(home)] += 1
        for tensor in _tensors(result):
            self._settle(tensor, home)
        return result

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        targets = [one for one in (*args, kwargs.pop("device", None)) if isinstance(one, (str, torch.device))]
        rest = [one for one in args if not isinstance(one, (str, torch.device))]
        before = self._home(tensor)
        after = torch.device(targets[0]) if targets else before
        with torch._C.DisableTorchFunction():
            moved = tensor.clone() if after != before else tensor
            moved = moved.to(*rest, **kwargs) if rest or kwargs else moved
        if after != before:
            self.crossed[str(before), str(after)] += 1
        elif before != CPU and moved.dtype != tensor.dtype:
            self.converted_there += 1
        self._settle(moved, after)
        return moved

    def _home(self, tensor: torch.Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            if tensor.device.type != "cpu":
                return tensor.device
            return self._homes.get(tensor.untyped_storage().data_ptr(), CPU)

    def _settle(self, tensor: torch.Tensor, home: torch.device) -> None:
        with torch._C.DisableTorchFunction():
            if tensor.device.type == "cpu" and tensor.numel():
                self._homes[tensor.untyped_storage().data_ptr()] = home


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
