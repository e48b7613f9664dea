"""A worker's spans belong to the gateway's, and end with a request's last word."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serverless_triton.backend.messages import CatchUp, Failed, Generate, Tokens
from serverless_triton.backend.outbox import News
from serverless_triton.backend.telemetry import ENDPOINT_VARIABLES, is_traceparent, make_provider
from serverless_triton.backend.worker_spans import WorkerSpans

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "a prompt that no span may show"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> WorkerSpans:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return WorkerSpans(provider)


def asked(traceparent: str | None = PARENT) -> Generate:
    return Generate(request=1, attempt=2, text=SECRET, resume_token_ids=[7], traceparent=traceparent)


def tokens(first: int, *ids: int, finish_reason: str | None = None) -> Tokens:
    return Tokens(
        request=1, first_position=first, output_ids=[*ids], text=SECRET, num_input_tokens=3, finish_reason=finish_reason
    )


def test_a_span_belongs_to_the_gateways_and_counts_tokens(spans: WorkerSpans, exporter: InMemorySpanExporter):
    spans.came(asked(), "m")
    spans.told(tokens(1))  # a heartbeat
    spans.told(tokens(1, 8, 9))
    assert not exporter.get_finished_spans()
    spans.told(tokens(3, 4, finish_reason="stop"))
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert span.name == "compute m"
    assert dict(span.attributes or {}) == {
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "attempt": 2,
        "resumed_at": 1,
        "outcome": "stop",
    }
    assert [event.name for event in span.events] == ["first_token"]
    assert SECRET not in span.to_json()


def test_a_failure_ends_it_with_its_code(spans: WorkerSpans, exporter: InMemorySpanExporter):
    spans.came(asked(), "m")
    spans.told(Failed(request=1, code="INVALID_ARGUMENT", message="no"))
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["outcome"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("message", [asked(None), CatchUp(request=1, reservation="s", attempt=0)])
def test_what_names_no_span_gets_none(spans: WorkerSpans, exporter: InMemorySpanExporter, message: Generate | CatchUp):
    spans.came(message, "m")
    spans.told(tokens(0, 1, finish_reason="stop"))
    assert not exporter.get_finished_spans()


def test_a_name_that_is_none_begins_a_trace(spans: WorkerSpans, exporter: InMemorySpanExporter):
    spans.came(asked("00-nonsense"), "m")
    spans.told(tokens(0, 1, finish_reason="stop"))
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_what_is_open_when_a_worker_ends_is_told(spans: WorkerSpans, exporter: InMemorySpanExporter):
    spans.came(asked(), "m")
    spans.close()
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["outcome"] == "worker_ended"


@pytest.mark.parametrize("news", [tokens(0, 1), Failed(request=9, code="INTERNAL", message="")])
def test_without_telemetry_nothing_happens(news: News):
    spans = WorkerSpans(None)
    spans.came(asked(), "m")
    spans.told(news)
    spans.close()


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (PARENT, True),
        (PARENT.upper(), False),
        (f"{PARENT}\n", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        ("", False),
    ],
)
def test_only_w3cs_form_names_a_span(text: str, is_one: bool):
    assert is_traceparent(text) is is_one


def test_there_is_a_provider_where_an_endpoint_is_configured(monkeypatch: pytest.MonkeyPatch):
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert make_provider("a") is None
    monkeypatch.setenv(ENDPOINT_VARIABLES[1], "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "b")
    provider = make_provider("a")
    assert provider is not None
    assert provider.resource.attributes["service.name"] == "b"
    provider.shutdown()
