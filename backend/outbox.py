"""What waits to be said of each request. Tokens that nobody has taken yet become one message with those before them.

So a receiver that falls behind hears fewer and longer messages instead of ever older ones, and whoever speaks never
waits for it. Used by the worker towards its stub and by the stub towards Triton; standard library only.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict

from serverless_triton.backend.messages import CaughtUp, Failed, Position, Tokens

News = Tokens | Position | CaughtUp | Failed


class Outbox:
    """Any thread puts, one takes. Requests take turns: the one whose news waits longest is first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: OrderedDict[int, list[News]] = OrderedDict()
        self._is_closed = False
        self._is_idle = True  # nothing waits, and what was taken has been dealt with

    def put(self, news: News) -> None:
        """Never waits. What is put after `close` is dropped."""
        with self._changed:
            if self._is_closed:
                return
            waiting = self._waiting.setdefault(news.request, [])
            merged = merge(waiting[-1], news) if waiting else None
            if merged is None:
                waiting.append(news)
            else:
                waiting[-1] = merged
            self._is_idle = False
            self._changed.notify_all()

    def take(self) -> list[News] | None:
        """All that waits for one request, in order; blocks until there is something. None once closed."""
        with self._changed:
            if not self._waiting:
                self._is_idle = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return None if self._is_closed else self._waiting.popitem(last=False)[1]

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether all that was put has been taken and dealt with, which the taker shows by coming again."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_idle or self._is_closed, timeout_s) and not self._is_closed

    def close(self) -> None:
        """Wakes who takes. What still waits is dropped."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()


def merge(earlier: News, later: News) -> News | None:
    """One message that says what both say, None where there is none."""
    if isinstance(earlier, Position):
        return None if isinstance(later, Failed) else later  # whatever comes is news enough
    if not isinstance(earlier, Tokens) or earlier.finish_reason is not None:
        return None
    if isinstance(later, Position):
        return earlier if earlier.output_ids else None
    if not isinstance(later, Tokens) or later.first_position != earlier.first_position + len(earlier.output_ids):
        return None
    return dataclasses.replace(
        later,
        first_position=earlier.first_position,
        output_ids=[*earlier.output_ids, *later.output_ids],
        text=earlier.text + later.text,
        num_input_tokens=max(earlier.num_input_tokens, later.num_input_tokens),
        prompt_ids=later.prompt_ids if earlier.prompt_ids is None else earlier.prompt_ids,
    )
