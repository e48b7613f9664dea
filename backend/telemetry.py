"""OpenTelemetry across processes: how a span is named to the next process, and where spans are sent.

Optional: the extra `telemetry` brings the packages, and OpenTelemetry's own variables say where to. Nothing here is
imported from there before it is asked for. What the spans are about is the gateway's and the worker's.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# How long spans wait before they are sent; a worker may be killed at any time, and what waits in it is lost.
SEND_EVERY_MS = 1000
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class TelemetryMissing(Exception):
    """An endpoint is configured, but the packages are not installed."""


def is_traceparent(text: str) -> bool:
    """Whether it is one of W3C Trace Context, version 00."""
    return _TRACEPARENT.fullmatch(text) is not None


def traceparent_of(span: Span) -> str:
    """What names it to the next process."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def context_of(traceparent: str) -> Context:
    """What a span begins in whose parent is named so; without a valid one, it begins a trace."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def is_asked_for() -> bool:
    return any(os.environ.get(name) for name in ENDPOINT_VARIABLES)


def make_provider(service: str) -> TracerProvider | None:
    """One that sends its spans by OTLP over HTTP, from a thread of its own; None where no endpoint is configured.

    `service` is their `service.name`, unless OTEL_SERVICE_NAME says otherwise. Raises TelemetryMissing.
    """
    if not is_asked_for():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        names = " and ".join(name for name in ENDPOINT_VARIABLES if os.environ.get(name))
        raise TelemetryMissing(f"{names} asks for traces: pip install 'serverless-triton[telemetry]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=SEND_EVERY_MS))
    return provider


def import_ahead() -> None:
    """Before processes are forked that will need it; starts no thread. Raises TelemetryMissing."""
    if is_asked_for():
        try:
            import opentelemetry.exporter.otlp.proto.http.trace_exporter
            import opentelemetry.sdk.trace.export  # noqa: F401
        except ImportError as error:
            raise TelemetryMissing("traces are asked for: pip install 'serverless-triton[telemetry]'") from error
