"""Everything that it takes to go on with one inference elsewhere, as a versioned message of plain values.

Text, detokeniser, held-back stop strings and KV memory follow from it (decision 8). It is JSON and never pickled: it
may come from another machine. Parsing is strict and bounded, and names the field that is wrong but never its content,
which is somebody's prompt. Imports the standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

VERSION = 1
MAX_BYTES = 32 << 20
MAX_TOKENS = 1 << 20  # of the prompt, and of the answer
MAX_HELD_CHARACTERS = 1024  # the longest stop string that a request may have
MAX_PARAMETER_BYTES = 1 << 20
MAX_LEVELS = 16  # of lists and objects in each other
_LARGEST_ID = 2**31 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FINISH_REASONS = (None, "stop", "length")


class TokenStateError(ValueError):
    """Base of what is wrong with a token state.

    TokenStateError
    ├── MalformedTokenState      it is no token state, or contradicts itself; the message names the field
    ├── TokenStateTooLarge       it is over a bound; the message says which
    ├── UnknownTokenStateVersion a newer or older program wrote it
    └── ForeignContract          it was computed under another exactness contract, so no exact resume is possible here
    """


class MalformedTokenState(TokenStateError):
    pass


class TokenStateTooLarge(TokenStateError):
    pass


class UnknownTokenStateVersion(TokenStateError):
    pass


class ForeignContract(TokenStateError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class StopState:
    """Where the search for stop strings stands. Follows from the ids; it is here so that a replay can be checked."""

    held_text: str = field(default="", repr=False)  # decoded, but it may still become a stop string
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """One inference between two tokens. Holds prompt text: never log it.

    `emitted_length` is the number of characters released so far; a replay emits only what comes after them.
    `sampling_parameters` are the request's as parsed, less its seed. `deadline_unix_s` is None where there is none.
    `contract` is the digest of engines/contract.py: 64 hexadecimal digits.
    """

    prompt_ids: tuple[int, ...] = field(repr=False)
    output_ids: tuple[int, ...] = field(repr=False)
    emitted_length: int
    sampling_parameters: Mapping[str, Any] = field(repr=False)
    seed: int | None
    stop_state: StopState
    deadline_unix_s: float | None
    contract: str

    @property
    def resume_parameters(self) -> dict[str, Any]:
        """The sampling parameters of a request that goes on with this."""
        return {**self.sampling_parameters, **({} if self.seed is None else {"seed": self.seed})}

    def require_contract(self, contract: str) -> None:
        """Raises ForeignContract unless `contract` is the one this was computed under."""
        if contract != self.contract:
            raise ForeignContract(
                f"this inference was computed under contract {self.contract[:12]}, and here it would be "
                f"{contract[:12]}; resume it on a server with the same checkpoint, versions, processor and threads"
            )


def encode_token_state(state: TokenState) -> str:
    """The message. Raises TokenStateTooLarge, and MalformedTokenState where a sampling parameter has no JSON."""
    body = {name: getattr(state, name) for name in _FIELDS if name != "stop_state"}
    body["sampling_parameters"] = dict(state.sampling_parameters)
    stop_state = {name: getattr(state.stop_state, name) for name in _STOP_FIELDS}
    try:
        text = json.dumps(
            {"version": VERSION, **body, "stop_state": stop_state}, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedTokenState(f"a token state holds what JSON cannot say: {type(error).__name__}") from error
    _check_size(text)
    return text


def parse_token_state(text: str | bytes) -> TokenState:
    """What `encode_token_state` wrote. Raises TokenStateError."""
    _check_size(text)
    try:
        body = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenStateError):
            raise
        raise MalformedTokenState(f"a token state that is not JSON: {type(error).__name__}") from error
    if not isinstance(body, dict) or type(body.get("version")) is not int:
        raise MalformedTokenState("a token state is a JSON object with a whole number as its 'version'")
    if body["version"] != VERSION:
        raise UnknownTokenStateVersion(f"token state version {body['version'] % 10**9}; this program reads {VERSION}")
    _check_names(body, ("version", *_FIELDS), "token state")
    state = TokenState(**{name: _PARSERS[name](name, body[name]) for name in _FIELDS})
    _check_whole(state)
    return state


def _check_size(text: str | bytes) -> None:
    if len(text) > MAX_BYTES:
        raise TokenStateTooLarge(f"a token state of {len(text)} bytes is over the limit of {MAX_BYTES}")


def _check_names(body: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    missing = [name for name in names if name not in body]
    if missing:
        raise MalformedTokenState(f"{what} lacks '{missing[0]}'")
    if len(body) > len(names):
        raise MalformedTokenState(f"{what} has fields that version {VERSION} does not know")


def _check_whole(state: TokenState) -> None:
    """What no field alone can tell."""
    if state.emitted_length and not state.output_ids:
        raise MalformedTokenState("token state field 'emitted_length' counts text, but there are no 'output_ids'")
    if state.stop_state.finish_reason is not None and not state.output_ids:
        raise MalformedTokenState("token state field 'stop_state' has ended, but there are no 'output_ids'")
    if "seed" in state.sampling_parameters:
        raise MalformedTokenState("token state field 'sampling_parameters' has a seed; it belongs into 'seed'")
    if state.sampling_parameters.get("temperature") and state.seed is None:
        raise MalformedTokenState("token state field 'seed' is missing, and temperature is not 0: tokens were drawn")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise MalformedTokenState("a token state names a field twice")
    return body


def _no_constant(name: str) -> Any:
    raise MalformedTokenState(f"a token state holds {name}, which is no JSON")


# One parser a field; each gets the field's name and its JSON value.


def _ids(name: str, value: Any, *, least: int = 0) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) < least:
        raise _wrong(name, f"a list of at least {least} token ids")
    if len(value) > MAX_TOKENS:
        raise TokenStateTooLarge(f"token state field '{name}' has {len(value)} ids; the limit is {MAX_TOKENS}")
    if not all(type(token) is int and 0 <= token <= _LARGEST_ID for token in value):
        raise _wrong(name, f"whole numbers from 0 to {_LARGEST_ID}")
    return tuple(value)


def _prompt_ids(name: str, value: Any) -> tuple[int, ...]:
    return _ids(name, value, least=1)


def _length(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_ID:
        raise _wrong(name, f"a whole number from 0 to {_LARGEST_ID}")
    return value


def _parameters(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    level: list[Any] = [value]
    for _ in range(MAX_LEVELS):
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    if any(isinstance(item, (dict, list)) for item in level):
        raise TokenStateTooLarge(f"token state field '{name}' is nested over {MAX_LEVELS} levels deep")
    if len(_unicode(name, json.dumps(value, ensure_ascii=False))) > MAX_PARAMETER_BYTES:
        raise TokenStateTooLarge(f"token state field '{name}' is over the limit of {MAX_PARAMETER_BYTES} bytes")
    return value


def _seed(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _wrong(name, "null or a whole number of 63 bits")
    return value


def _stop_state(name: str, value: Any) -> StopState:
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    _check_names(value, _STOP_FIELDS, f"token state field '{name}'")
    held, reason = value["held_text"], value["finish_reason"]
    if not isinstance(held, str):
        raise _wrong(f"{name}.held_text", "a string")
    _unicode(f"{name}.held_text", held)
    if len(held) > MAX_HELD_CHARACTERS:
        raise TokenStateTooLarge(
            f"token state field '{name}.held_text' has {len(held)} characters; the limit is {MAX_HELD_CHARACTERS}"
        )
    if not (reason is None or isinstance(reason, str)) or reason not in _FINISH_REASONS:
        raise _wrong(f"{name}.finish_reason", "null, 'stop' or 'length'")
    return StopState(held_text=held, finish_reason=reason)


def _deadline(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        raise _wrong(name, "null or seconds since 1970")
    return float(value)


def _contract(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _wrong(name, "64 lower-case hexadecimal digits")
    return value


def _unicode(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise _wrong(name, "Unicode text") from error


def _wrong(name: str, right: str) -> MalformedTokenState:
    return MalformedTokenState(f"token state field '{name}' must be {right}")


_FIELDS = tuple(f.name for f in fields(TokenState))
_STOP_FIELDS = tuple(f.name for f in fields(StopState))
_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "prompt_ids": _prompt_ids,
    "output_ids": _ids,
    "emitted_length": _length,
    "sampling_parameters": _parameters,
    "seed": _seed,
    "stop_state": _stop_state,
    "deadline_unix_s": _deadline,
    "contract": _contract,
}
