"""A worker's spans: one for each request that names the span that it belongs to, from its coming to its last word.

Used by one thread. A worker without telemetry opens none.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from serverless_triton.backend.messages import CatchUp, CaughtUp, Failed, Generate, Tokens
from serverless_triton.backend.outbox import News
from serverless_triton.backend.telemetry import context_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

LINGER_S = 1.0
TRACER = "serverless_triton.worker"


class WorkerSpans:
    """Those of the requests in flight."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._open: dict[int, Span] = {}
        self._tokens: dict[int, int] = {}

    def came(self, message: Generate | CatchUp, model: str) -> None:
        """A request, which is not computed yet."""
        if self._provider is None or not isinstance(message, Generate) or message.traceparent is None:
            return
        attributes: dict[str, str | int] = {
            "gen_ai.request.model": model,
            "attempt": message.attempt,
            "resumed_at": message.next_position,
        }
        context = context_of(message.traceparent)
        tracer = self._provider.get_tracer(TRACER)
        self._open[message.request] = tracer.start_span(f"compute {model}", context=context, attributes=attributes)
        self._tokens[message.request] = 0

    def told(self, news: News) -> None:
        """Something that is said of a request; the last of it ends the span."""
        span = self._open.get(news.request)
        if span is None:
            return
        if isinstance(news, Tokens):
            self._count(span, news)
        if isinstance(news, Failed):
            self._end(news.request, span, news.code)
        elif isinstance(news, CaughtUp) or (isinstance(news, Tokens) and news.finish_reason is not None):
            self._end(news.request, span, news.finish_reason if isinstance(news, Tokens) else "caught_up")

    def _count(self, span: Span, news: Tokens) -> None:
        if news.output_ids and not self._tokens[news.request]:
            span.add_event("first_token")
            span.set_attribute("gen_ai.usage.input_tokens", news.num_input_tokens)
        self._tokens[news.request] += len(news.output_ids)

    def _end(self, request: int, span: Span, outcome: str | None) -> None:
        span.set_attribute("gen_ai.usage.output_tokens", self._tokens.pop(request))
        span.set_attribute("outcome", outcome or "")
        span.end()
        del self._open[request]

    def close(self) -> None:
        """Whatever is still open ends, and all are sent if that takes no longer than a worker may linger."""
        for request, span in list(self._open.items()):
            self._end(request, span, "worker_ended")
        if self._provider is not None:
            sending = threading.Thread(target=self._provider.shutdown, daemon=True)
            sending.start()
            sending.join(LINGER_S)
