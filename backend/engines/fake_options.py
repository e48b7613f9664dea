"""What a fake engine is told to be like: how long it loads, how fast it is, what goes wrong and when."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from serverless_triton.backend.engines.protocol import ModelNotSupported

Pause = Callable[[], None]

FAULTS = ("none", "load_fails", "step_fails", "dies", "hangs")
TOKENS = ("hash", "time")


class FakeFault(RuntimeError):
    """What a fake engine raises because it was told to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOptions:
    """Of one fake engine. `tokens_per_s` is every stream's rate, 0 for as fast as it goes.

    `fault` is what happens once `fault_after_steps` steps have gone well: the step raises ("step_fails"), the process
    kills itself ("dies"), or nothing happens any more ("hangs"). With "load_fails" there is no engine at all.
    `tokens` are a hash of prompt and position, or the time at which each was made (`time_token`).
    """

    load_s: float = 0.0
    tokens_per_s: float = 0.0
    fault: str = "none"
    fault_after_steps: int = 0
    tokens: str = "hash"

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> FakeOptions:
        """From a model's `engine_options`. Raises ModelNotSupported naming the option and what would be right."""
        known = [field.name for field in fields(cls)]
        for name in sorted(set(options) - set(known)):
            raise ModelNotSupported(f"engine_options.{name} is unknown; the fake engine has {', '.join(known)}")
        for name in ("load_s", "tokens_per_s"):
            _check(name, options, _is_amount, "a number from 0")
        _check("fault_after_steps", options, lambda value: type(value) is int and value >= 0, "a whole number from 0")
        _check("fault", options, lambda value: value in FAULTS, f"one of {', '.join(FAULTS)}")
        _check("tokens", options, lambda value: value in TOKENS, f"one of {', '.join(TOKENS)}")
        return cls(**options)

    def load(self) -> None:
        """Takes the time that a load takes. Raises FakeFault."""
        time.sleep(self.load_s)
        if self.fault == "load_fails":
            raise FakeFault("this engine was told not to load")

    def pause(self) -> Pause:
        """What an engine with these options does in each step, before its tokens."""
        pauses = [paced(self.tokens_per_s)] if self.tokens_per_s else []
        if self.fault in _FAULTS:
            pauses.append(after(self.fault_after_steps, _FAULTS[self.fault]))
        return _all(pauses)


def _check(name: str, options: Mapping[str, Any], is_right: Callable[[Any], bool], what: str) -> None:
    if name in options and not is_right(options[name]):
        raise ModelNotSupported(f"engine_options.{name} is {options[name]!r}; use {what}")


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= 0


def paced(tokens_per_s: float, sleep: Callable[[float], None] = time.sleep) -> Pause:
    """A pause that lets every stream have this many tokens a second."""
    return lambda: sleep(1.0 / tokens_per_s)


def failing(after_steps: int, error: Exception) -> Pause:
    """A pause that raises once so many steps have gone well, as a kernel or a device would."""

    def fail() -> None:
        raise error

    return after(after_steps, fail)


def after(steps: int, happens: Pause) -> Pause:
    """A pause that is none for so many steps, and then `happens` in each."""
    left = iter(range(steps))
    return lambda: happens() if next(left, None) is None else None


def _all(pauses: Sequence[Pause]) -> Pause:
    def pause() -> None:
        for part in pauses:
            part()

    return pause


def _fail() -> None:
    raise FakeFault("this engine was told to fail")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    threading.Event().wait()


_FAULTS: Mapping[str, Pause] = {"step_fails": _fail, "dies": _die, "hangs": _hang}
