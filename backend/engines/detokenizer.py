"""Turns generated token ids into text, one id at a time.

What has been released after n ids is a function of those n ids (and of the prompt and the stop strings) alone, so
replaying a resumed stream's ids finds exactly the text that its client already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_CONTEXT_TOKENS = 5  # enough for decoders that treat the first token specially (SentencePiece drops its space)
_INCOMPLETE = "\ufffd"


class Tokenizer(Protocol):
    """Text to token ids and back. `decode` leaves special tokens out and writes U+FFFD for what is no character.

    A text of more than `longest_token_bytes` of UTF-8 for each of n tokens has more than n.
    """

    @property
    def longest_token_bytes(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """With the tokens that this tokenizer puts around every text, unless the text has them already."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Decodes a window that begins where the text was last whole: the text of all ids, in constant time.

    The window technique is that of Hugging Face's text-generation-inference and vLLM.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._old = len(self._window)  # the ids at the window's front whose text has been released
        self._old_text = tokenizer.decode(self._window)
        if self._old_text.endswith(_INCOMPLETE):
            self._window, self._old, self._old_text = [], 0, ""

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while a character lacks bytes."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(self._old_text) or text.endswith(_INCOMPLETE):
            return ""
        return self._release(text)

    def flush(self) -> str:
        """What is left at the end; bytes that never became a character show as U+FFFD."""
        return self._release(self._tokenizer.decode(self._window))

    def _release(self, text: str) -> str:
        released = text[len(self._old_text) :]
        self._window = self._window[self._old :]
        self._old = len(self._window)
        self._old_text = self._tokenizer.decode(self._window)
        return released


class StopStrings:
    """Passes text on up to the first stop string and holds back what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is safe to release. Once a stop string has `matched`, nothing more is."""
        if self.matched:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        self.matched = bool(found)
        keep = min(found) if found else len(text) - self._pending(text)
        self._held = "" if found else text[keep:]
        return text[:keep]

    @property
    def held_text(self) -> str:
        """What may still become a stop string."""
        return self._held

    def flush(self) -> str:
        released, self._held = self._held, ""
        return released

    def _pending(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
