"""A gateway on free ports over fakes, for unmodified clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, FakeUpstream
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import GatewaySettings
from tests.unit.gateway.samples import add_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_model(tmp_path, "m")
    add_model(tmp_path, "sleeper")
    add_model(tmp_path, "onnx", 'backend: "onnxruntime" input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]')
    add_model(tmp_path, "broken", "name: {")
    return tmp_path


@pytest.fixture
def admission() -> FakeAdmission:
    return FakeAdmission()


@pytest.fixture
def upstream() -> FakeUpstream:
    """Generates 4 tokens per request: " 0 1 2 3"."""
    return FakeUpstream(FakeEngine())


@pytest.fixture
def by_hand() -> FakeUpstream:
    return FakeUpstream()


SETTINGS = GatewaySettings(http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=1.0, max_message_bytes=2**16)


async def two_servers() -> dict[str, int]:
    """A cluster's status."""
    return {"servers": 2}


def make_gateway(
    repository: Path,
    admission: FakeAdmission,
    upstream: FakeUpstream,
    can_serve: Callable[[], bool] = lambda: True,
) -> Gateway:
    return Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=SETTINGS,
        cluster_status=two_servers,
        can_serve=can_serve,
    )


@pytest.fixture
async def gateway(repository: Path, admission: FakeAdmission, upstream: FakeUpstream) -> AsyncIterator[Gateway]:
    gateway = make_gateway(repository, admission, upstream)
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def manual_gateway(repository: Path, admission: FakeAdmission, by_hand: FakeUpstream) -> AsyncIterator[Gateway]:
    gateway = make_gateway(repository, admission, by_hand)
    await gateway.start()
    yield gateway
    await gateway.stop()
