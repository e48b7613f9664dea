"""A checkpoint's chat template: messages in, the text of a prompt out.

A template is a program that comes with a checkpoint, from whoever made it. It runs in a sandbox (template_sandbox.py),
over plain JSON values only. What it writes is bounded here, how long it computes there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from serverless_triton.backend.engines.protocol import InvalidRequest
from serverless_triton.backend.engines.template_sandbox import TemplateSandbox

CHAT_TEMPLATE_FILES = (
    "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
MOST_CHARACTERS = 32 << 20  # of a rendered prompt
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """`special_tokens` are what the template finds under names such as `eos_token`.

    A template with a mistake in it is no reason not to serve its model: only chats are refused.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._special_tokens = dict(special_tokens or {})
        self._sandbox = TemplateSandbox()
        self._template: Template | None = None
        self._mistake = ""
        try:
            self._sandbox.start_clock()
            self._template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            self._mistake = f"{error.message} in line {error.lineno}"
        except Exception as error:  # noqa: BLE001 - Python's own limits: blocks in blocks, parentheses in parentheses
            self._mistake = f"{type(error).__name__}, it may be nested too deeply"

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for the assistant's next message. Raises InvalidRequest, also in the template's words.

        Members of a message that are null are left out: many templates would write "None".
        """
        if self._template is None:
            raise InvalidRequest(f"this model's chat template cannot be read: {self._mistake}")
        plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
        try:
            self._sandbox.start_clock()
            return self._write(self._template, plain)
        except TemplateError as error:
            raise InvalidRequest(f"this model's chat template refuses the messages: {error}") from error
        except InvalidRequest:
            raise
        except Exception as error:  # whatever an expression in it raises
            raise InvalidRequest(f"this model's chat template failed over them: {type(error).__name__}") from error

    def _write(self, template: Template, messages: Sequence[Mapping[str, Any]]) -> str:
        pieces, characters = [], 0
        for piece in template.generate(**self._special_tokens, messages=messages, add_generation_prompt=True):
            pieces.append(piece)
            characters += len(piece)
            if characters > MOST_CHARACTERS:
                raise InvalidRequest(f"the messages become a prompt of more than {MOST_CHARACTERS} characters")
        return "".join(pieces)


def load_chat_template(checkpoint: Path) -> ChatTemplate | None:
    """None where the checkpoint has none. Raises ValueError or OSError where one of its files cannot be read."""
    config = _json_object(checkpoint / "tokenizer_config.json")
    source = _source(checkpoint, config)
    if source is None:
        return None
    return ChatTemplate(source, _special_tokens({**_json_object(checkpoint / "special_tokens_map.json"), **config}))


def _source(checkpoint: Path, config: Mapping[str, Any]) -> str | None:
    """In transformers' order. Of several named templates "default" is the one for chats."""
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template") or _json_object(checkpoint / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """A token stands there as a string, or as an object with its `content`."""
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json_object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_bytes()) if file.is_file() else {}
    return value if isinstance(value, dict) else {}
