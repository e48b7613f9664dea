"""A relay over fakes, and a repository with one serverless model."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.fake_upstream import FakeUpstream
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.relay import Relay
from serverless_triton.scheduler.gateway.request import parse_request
from serverless_triton.scheduler.gateway.statistics import Statistics
from serverless_triton.scheduler.journal import Journal
from serverless_triton.scheduler.receipts import ReceiptBook
from tests.unit.gateway.samples import add_model, flag, infer_request


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_model(tmp_path, "m")
    return tmp_path


@pytest.fixture
def catalogue(repository: Path) -> Catalogue:
    return Catalogue(repository)


@pytest.fixture
def admission() -> FakeAdmission:
    return FakeAdmission()


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
def relay(admission: FakeAdmission, upstream: FakeUpstream) -> Relay:
    return Relay(
        admission=admission,
        upstream=upstream,
        journal=Journal(),
        receipts=ReceiptBook(),
        metrics=GatewayMetrics(),
        statistics=Statistics(),
    )


@pytest.fixture
def streamed(catalogue: Catalogue):
    """A request for streamed text with its ids."""
    request = infer_request(flag("stream"))
    for name in ("text_output", "output_ids", "finish_reason"):
        request.outputs.add(name=name)
    return parse_request(request, catalogue.entry("m"))
