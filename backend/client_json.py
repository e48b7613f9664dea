"""JSON that people and clients write: parsed once, bounded in depth, and named where it is wrong.

Standard library only, because the stub inside Triton imports it. How deep a parser may go hangs on who calls it, so
that what one process has read another may fail to: every client's JSON is far from any such limit, or is refused here.
"""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 16  # of lists and objects in each other


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object from a client's string. Raises ValueError naming `what`."""
    value = _parse(text, what)
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, not {type(value).__name__}")  # noqa: TRY004 - the text is wrong
    return value


def parse_messages(text: str, what: str) -> list[dict[str, Any]]:
    """A chat from a client's string: a JSON list of objects. Raises ValueError naming `what`."""
    value = _parse(text, what)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{what} must be a JSON list of objects")
    if not value:
        raise ValueError(f"{what} is empty; send at least one message")
    return value


def _parse(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(what) from error
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    if level:
        raise _too_deep(what)
    return value


def _too_deep(what: str) -> ValueError:
    return ValueError(f"{what} is nested too deeply; use at most {MOST_LEVELS} levels")
