"""The members of a request's JSON object, taken out one by one and checked. What nobody takes is refused.

Null means absent, as OpenAI's clients write it. Raises InvalidParameter, which names the member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from serverless_triton.scheduler.gateway.openai.errors import InvalidParameter

Value = TypeVar("Value")
_MOST_SHOWN = 64


class Members:
    """`path` stands before every name, as in "messages[0]."."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._left = dict(values)
        self._path = path

    def name(self, name: str) -> str:
        return self._path + name

    def take(self, name: str, parse: Callable[[Any], Value | None], what: str, default: Value) -> Value:
        """Parsed, or the default; `parse` gives None for what is not `what`."""
        value = self._left.pop(name, None)
        return default if value is None else self._parsed(name, value, parse, what)

    def require(self, name: str, parse: Callable[[Any], Value | None], what: str) -> Value:
        value = self._left.pop(name, None)
        if value is None:
            raise self.wrong(name, f"is missing; give {what}", "missing_required_parameter")
        return self._parsed(name, value, parse, what)

    def _parsed(self, name: str, value: Any, parse: Callable[[Any], Value | None], what: str) -> Value:
        parsed = parse(value)
        if parsed is None:
            raise self.wrong(name, f"must be {what}, not {_shown(value)}", "invalid_type")
        return parsed

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Members that mean something which this server does not do, unless their value asks for nothing."""
        for name, values in neutral.items():
            value = self._left.pop(name, None)
            if value is not None and value not in values:
                raise self.wrong(name, "is not supported by this server; leave it out", "unsupported_parameter")

    def ignore(self, *names: str) -> None:
        """Members that change nothing about the answer."""
        for name in names:
            self._left.pop(name, None)

    def end(self) -> None:
        """Raises InvalidParameter where anything is left."""
        for name in sorted(self._left):
            unknown = self.name(name[:_MOST_SHOWN].encode("utf-8", "backslashreplace").decode())
            raise InvalidParameter(unknown, f"Unrecognized request argument supplied: {unknown}", "unknown_parameter")

    def wrong(self, name: str, message: str, code: str = "invalid_value") -> InvalidParameter:
        return InvalidParameter(self.name(name), f"'{self.name(name)}' {message}", code)


def _shown(value: Any) -> str:
    """A client's number; what may be a prompt only by its kind."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)) and abs(value) < 2**63:
        return repr(value)
    kinds: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number of that size")


def text(value: Any) -> str | None:
    """Unicode text: JSON can escape half a surrogate pair."""
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def items(value: Any) -> list[Any] | None:
    """A list that is not empty."""
    return value if isinstance(value, list) and value else None


def as_whole(value: Any) -> int | None:
    """A whole number, also as 5.0: so it is written where a client's JSON has no integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def whole(low: int, high: int) -> Callable[[Any], int | None]:
    def parse(value: Any) -> int | None:
        found = as_whole(value)
        return found if found is not None and low <= found <= high else None

    return parse


def number(low: float, high: float, *, above_low: bool = False) -> Callable[[Any], float | None]:
    def parse(value: Any) -> float | None:
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return float(value) if sound and not (above_low and value == low) else None

    return parse
