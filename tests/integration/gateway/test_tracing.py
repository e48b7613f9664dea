"""One trace from a client's request through the gateway to the worker, whatever the request came by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.backend.messages import Generate, Tokens
from serverless_triton.backend.worker_spans import WorkerSpans
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.tracing import Tracing
from tests.integration.gateway.conftest import SETTINGS
from tests.unit.gateway.samples import flag, infer_request

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
SECRET = "xyzzy"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
async def traced(repository, admission, upstream, provider) -> AsyncIterator[Gateway]:
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=SETTINGS,
        tracing=Tracing(provider),
    )
    await gateway.start()
    yield gateway
    await gateway.stop()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Of the span: its own and its parent's."""
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    return f"{span.context.span_id:016x}", f"{span.parent.span_id:016x}"


async def post(gateway: Gateway, path: str, body: dict[str, object], headers: dict[str, str]) -> None:
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session,
        session.post(path, json=body, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        await answer.read()


async def stream(gateway: Gateway, *requests: pb.ModelInferRequest, metadata: tuple[tuple[str, str], ...]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        async for message in stub.ModelStreamInfer(iter(requests), metadata=metadata):
            assert not message.error_message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/m/generate", {"text_input": SECRET}),
        ("/v2/models/m/generate_stream", {"text_input": SECRET, "stream": True}),
        ("/v1/completions", {"model": "m", "prompt": SECRET}),
    ],
)
async def test_an_http_requests_span_is_its_streams_parent(traced, exporter, path, body):
    await post(traced, path, body, HEADER)
    (span,) = exporter.get_finished_spans()
    assert ids(span)[1] == CLIENT
    assert span.name == "generate m"
    assert (span.attributes or {})["outcome"] == "length"
    assert [event.name for event in span.events] == ["placed", "first_token"]
    assert SECRET not in span.to_json()


async def test_requests_of_one_grpc_stream_are_spans_of_one_trace(traced, exporter):
    await stream(traced, infer_request(flag("stream")), infer_request(flag("stream")), metadata=tuple(HEADER.items()))
    spans = exporter.get_finished_spans()
    assert [ids(span)[1] for span in spans] == [CLIENT, CLIENT]
    assert len({ids(span)[0] for span in spans}) == 2


async def test_the_worker_goes_on_with_the_gateways_span(traced, upstream, exporter, provider):
    await post(traced, "/v2/models/m/generate", {"text_input": SECRET}, HEADER)
    told = upstream.calls[0].request.parameters["traceparent"].string_param
    worker = WorkerSpans(provider)
    worker.came(Generate(request=1, text=SECRET, traceparent=told), "m")
    worker.told(Tokens(request=1, first_position=0, output_ids=[1], text="", num_input_tokens=1, finish_reason="stop"))
    gateway_span, worker_span = exporter.get_finished_spans()
    assert ids(worker_span)[1] == ids(gateway_span)[0]


async def test_a_connections_next_request_does_not_inherit(traced, exporter):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{traced.http_port}") as session:
        for headers in (HEADER, {"traceparent": "nonsense"}):
            async with session.post("/v2/models/m/generate", json={"text_input": "hi"}, headers=headers) as answer:
                await answer.read()
    first, second = exporter.get_finished_spans()
    assert first.parent is not None
    assert second.parent is None


async def test_a_failed_streams_span_says_so(traced, upstream, exporter):
    upstream.script(lambda call: iter([None]))
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{traced.http_port}") as session,
        session.post("/v2/models/m/generate", json={"text_input": "hi"}) as answer,
    ):
        assert answer.status == 503
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["outcome"] == "UNAVAILABLE"
    assert [event.name for event in span.events] == ["placed", "replica_lost"] * 3


async def test_without_telemetry_a_clients_span_is_the_workers_parent(gateway, upstream):
    await post(gateway, "/v2/models/m/generate", {"text_input": "hi"}, HEADER)
    await post(gateway, "/v2/models/m/generate", {"text_input": "hi"}, {"traceparent": "nonsense"})
    first, second = (call.request.parameters for call in upstream.calls)
    assert first["traceparent"].string_param == HEADER["traceparent"]
    assert "traceparent" not in second


async def test_a_client_cannot_send_the_parameter_itself(gateway):
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session,
        session.post("/v2/models/m/generate", json={"text_input": "hi", "traceparent": "x"}) as answer,
    ):
        assert answer.status == 400
        assert "reserved for the gateway" in (await answer.json())["error"]


async def test_a_gateway_that_stops_sends_what_waits(repository, admission, upstream):
    closed = asyncio.Event()
    tracing = Tracing()
    loop = asyncio.get_running_loop()
    tracing.close = lambda: loop.call_soon_threadsafe(closed.set)  # type: ignore[method-assign]
    gateway = Gateway(
        catalogue=Catalogue(repository), admission=admission, upstream=upstream, settings=SETTINGS, tracing=tracing
    )
    await gateway.start()
    await gateway.stop()
    await asyncio.wait_for(closed.wait(), 5)
