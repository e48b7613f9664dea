"""A request's sampling parameters: vLLM's names, parsed once and strictly. How a token is drawn is each engine's.

Two defaults are our own. An absent `temperature` means 0, greedy, where vLLM samples at 1: the same prompt then gives
the same text, also after a move. A sampled request without `seed` gets a random one. As in vLLM, a temperature between
0 and 0.01 counts as 0.01: below it quotients overflow, and nothing but the best token is drawn anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from serverless_triton.backend.engines.protocol import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """`top_k` 0 or -1 means every token. `seed` is drawn where the request has none and `temperature` is not 0."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> SamplingParameters:
        """Raises InvalidRequest naming the key and what would be right."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise InvalidRequest(f"sampling parameter {shown(name)} is unknown; known are {', '.join(known)}")
        values = {name: _PARSERS[name](name, value) for name, value in given.items() if value is not None}
        if values.get("temperature", 0.0) != 0.0:
            values.setdefault("seed", secrets.randbits(63))
        parameters = cls(**values)
        if parameters.min_tokens > parameters.max_tokens:
            raise InvalidRequest(f"min_tokens {parameters.min_tokens} is more than max_tokens {parameters.max_tokens}")
        return parameters

    def as_given(self) -> dict[str, Any]:
        """What `parse` makes these parameters of, as JSON has it; a seed that was drawn is in it."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _number(low: float, high: float, *, above_low: bool = False) -> Callable[[str, Any], float]:
    bounds = f"a number {'above' if above_low else 'from'} {low:g} to {high:g}"

    def parse(name: str, value: Any) -> float:
        # Compared before it is converted: neither NaN nor a whole number too large for a float gets through.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above_low and value == low):
            raise _wrong(name, value, bounds)
        return float(value)

    return parse


def _temperature(name: str, value: Any) -> float:
    temperature = _number(0, 100)(name, value)
    return max(temperature, _LEAST_TEMPERATURE) if temperature else 0.0


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def parse(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(name, value, f"a whole number from {low} to {high}")
        return value

    return parse


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    sound = isinstance(values, (list, tuple)) and len(values) <= _MOST_STOPS
    if not sound or not all(isinstance(text, str) and 0 < len(text) <= _LONGEST_STOP for text in values):
        right = f"a string or a list of at most {_MOST_STOPS} strings, each of 1 to {_LONGEST_STOP} characters"
        raise _wrong(name, value, right)
    return tuple(values)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    sound = isinstance(value, (list, tuple)) and len(value) <= _MOST_STOP_IDS
    if not sound or not all(type(token) is int and 0 <= token <= _MOST_TOKENS for token in value):
        raise _wrong(name, value, f"a list of at most {_MOST_STOP_IDS} token ids")
    return tuple(value)


def _wrong(name: str, value: Any, right: str) -> InvalidRequest:
    return InvalidRequest(f"sampling parameter {name!r} is {shown(value)}; use {right}")


def shown(value: object) -> str:
    """A client's value for a message: short whatever it is, where `repr` may fail on its digits or its depth."""
    if isinstance(value, str):
        return repr(value[:_MOST_SHOWN])
    if isinstance(value, int) and value.bit_length() > 64:
        return "a whole number of more than 64 bits"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__


_MOST_SHOWN = 80
_LEAST_TEMPERATURE = 1e-2
_MOST_STOPS = 64
_LONGEST_STOP = 1024
_MOST_STOP_IDS = 1024
_MOST_TOKENS = 2**31 - 1
_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "temperature": _temperature,
    "top_k": _whole(-1, _MOST_TOKENS),
    "top_p": _number(0, 1, above_low=True),
    "seed": _whole(0, 2**63 - 1),
    "max_tokens": _whole(1, _MOST_TOKENS),
    "min_tokens": _whole(0, _MOST_TOKENS),
    "stop": _strings,
    "stop_token_ids": _ids,
    "ignore_eos": _flag,
}
