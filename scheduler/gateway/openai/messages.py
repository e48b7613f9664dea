"""A chat of OpenAI's shape as the chat that goes to a backend: text only, without tools."""

from __future__ import annotations

from typing import Any

from serverless_triton.scheduler.gateway.openai.members import Members, items, mapping, text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ABSENT: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "function_call": (), "audio": (), "refusal": ()}
_MOST_MESSAGES = 8192


def read_messages(body: Members) -> list[dict[str, str]]:
    """Raises InvalidParameter."""
    found = body.require("messages", items, "a list of at least one message")
    if len(found) > _MOST_MESSAGES:
        raise body.wrong("messages", f"holds {len(found)} messages; at most {_MOST_MESSAGES} are taken")
    return [_message(value, f"messages[{index}]") for index, value in enumerate(found)]


def _message(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Members({}).wrong(path, "must be an object with role and content", "invalid_type")
    members = Members(value, f"{path}.")
    roles = f"one of {', '.join(_ROLES)}; this server takes no tools"
    role = members.require("role", lambda found: _ROLES.get(found) if isinstance(found, str) else None, roles)
    message = {"role": role, "content": _content(members)}
    name = members.take("name", text, "a string", "")
    members.refuse(_ABSENT)
    members.end()
    return {**message, "name": name} if name else message


def _content(members: Members) -> str:
    """Text, or the texts of its parts, a line each as vLLM puts them."""
    what = "a string or a list of parts of type text"
    parts = members.require("content", lambda found: items(found) or _one(found), what)
    return "\n".join(_part(part, members.name(f"content[{index}]")) for index, part in enumerate(parts))


def _one(content: Any) -> list[Any] | None:
    found = text(content)
    return None if found is None else [{"type": "text", "text": found}]


def _part(value: Any, path: str) -> str:
    members = Members(mapping(value) or {}, f"{path}.")
    kind = members.require("type", text, "text")
    if kind != "text":
        raise members.wrong("type", "must be text: this server takes no images, audio or files", "unsupported_value")
    found = members.require("text", text, "a string")
    members.ignore("cache_control")
    members.end()
    return found
