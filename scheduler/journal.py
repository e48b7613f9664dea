"""The token state of every open stream: what it takes to go on with it elsewhere.

A journal entry accepts only messages of the current attempt that start at the next position (decision 8); what to do
when a replica dies is `gateway/relay.py`'s. Nothing here does I/O.
"""

from __future__ import annotations

import enum
import secrets
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import StreamId


class Verdict(enum.Enum):
    """What became of a message from upstream."""

    ACCEPTED = "accepted"
    STALE = "stale"  # an earlier attempt's, or tokens that are already here
    GAP = "gap"  # tokens before it are missing: that attempt can't be trusted any more


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """What a new attempt is told. `prompt_ids` are empty as long as no replica has told them."""

    attempt: int
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class StreamJournal:
    """One stream's prompt and everything generated for it. Token ids are int32; positions count from the first."""

    stream: StreamId
    model: str
    attempt: int = 0
    prompt_ids: array[int] = field(default_factory=lambda: array("i"))
    output_ids: array[int] = field(default_factory=lambda: array("i"))
    emitted_text_length: int = 0  # characters
    num_input_tokens: int = 0
    finish_reason: str | None = None
    dropped_messages: int = 0

    def accept(self, *, attempt: int, first_position: int, output_ids: Sequence[int], text: str) -> Verdict:
        """Takes a message in if it is the next one; a message that is not changes nothing but `dropped_messages`."""
        verdict = self._judge(attempt, first_position)
        if verdict is Verdict.ACCEPTED:
            self.output_ids.extend(output_ids)
            self.emitted_text_length += len(text)
        else:
            self.dropped_messages += 1
        return verdict

    def _judge(self, attempt: int, first_position: int) -> Verdict:
        if self.finish_reason is not None or attempt != self.attempt or first_position < len(self.output_ids):
            return Verdict.STALE
        return Verdict.ACCEPTED if first_position == len(self.output_ids) else Verdict.GAP

    def learn(self, prompt_ids: Sequence[int], num_input_tokens: int | None, finish_reason: str | None) -> None:
        """What an accepted message says besides its tokens. A resumed attempt repeats the prompt: it is the same."""
        if not self.prompt_ids:
            self.prompt_ids.extend(prompt_ids)
        if num_input_tokens is not None:
            self.num_input_tokens = num_input_tokens
        self.finish_reason = finish_reason

    def next_attempt(self) -> None:
        """From here on, whatever the attempts before still send is stale."""
        self.attempt += 1

    def resume_point(self) -> ResumePoint:
        return ResumePoint(attempt=self.attempt, token_ids=tuple(self.output_ids), prompt_ids=tuple(self.prompt_ids))


class Journal:
    """The journals of the streams that are open here, by stream id."""

    def __init__(self) -> None:
        self._streams: dict[StreamId, StreamJournal] = {}

    def open(self, model: str) -> StreamJournal:
        """A new stream under an id nobody can guess."""
        stream = StreamId(secrets.token_urlsafe(16))
        journal = self._streams[stream] = StreamJournal(stream=stream, model=model)
        return journal

    def close(self, stream: StreamId) -> None:
        self._streams.pop(stream, None)

    def __iter__(self) -> Iterator[StreamJournal]:
        return iter(tuple(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)
