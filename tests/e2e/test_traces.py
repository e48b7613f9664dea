"""One trace from a client through the gateway and Triton to the worker, as a collector receives it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serverless_triton.backend.model_repository import EngineLimits, add_model
from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """What was exported to it: span name → (service, span, parent, trace), ids in hexadecimal."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, str, str, str]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, exported: ExportTraceServiceRequest) -> None:
        for resource in exported.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.span_id.hex(), span.parent_span_id.hex(), span.trace_id.hex())
                    self.spans[span.name] = (attributes["service.name"], *ids)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture
def cluster(
    collector: Collector, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCluster]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    limits = EngineLimits(engine="fake", max_sequence_tokens=64, max_streams=2)
    add_model(tmp_path / "models", "m", demo_model, limits=limits)
    with LocalCluster(tmp_path, tmp_path / "models", servers=1, dram_bytes=DRAM_BYTES) as running:
        yield running


def test_the_clients_span_is_the_gateways_parent_and_that_is_the_workers(
    cluster: LocalCluster, collector: Collector
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
    headers = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
    body = json.dumps({"text_input": "hi", "max_tokens": 4})
    connection.request("POST", "/v2/models/m/generate", body, headers)
    assert connection.getresponse().status == 200
    connection.close()
    names = ("generate m", "compute m")
    cluster.until(lambda: all(name in collector.spans for name in names), "both spans are exported")
    gateway, worker = (collector.spans[name] for name in names)
    assert (gateway[0], worker[0]) == ("serverless-triton-gateway", "serverless-triton-worker")
    assert gateway[2] == CLIENT
    assert worker[2] == gateway[1]
    assert gateway[3] == worker[3] == TRACE
