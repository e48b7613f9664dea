"""Loads and unloads that go by way of the agent: for whoever leads, and for nobody before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serverless_triton.backend import triton_control_pb2 as pb
from serverless_triton.backend import triton_control_pb2_grpc
from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.devices import Devices
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import CertificateUnusable, NodeTLS
from serverless_triton.backend.triton_control import TritonControlService, TritonLink
from tests.certificates import Authority

LOOPBACK = "127.0.0.1:0"


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Notes what it is asked, and with which metadata."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.metadata: dict[str, str | bytes] = {}
        self.refusal: tuple[grpc.StatusCode, str] | None = None

    async def RepositoryModelLoad(self, request, context):  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        if self.refusal is not None:
            await context.abort(*self.refusal)
        config = request.parameters["config"].string_param if "config" in request.parameters else ""
        self.asked.append(("load", request.model_name, config))
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request, context):  # noqa: N802
        self.asked.append(("unload", request.model_name, ""))
        return service_pb2.RepositoryModelUnloadResponse()


@dataclass
class Node:
    triton: Triton = field(default_factory=Triton)
    secret: NodeSecret | None = None
    tls: NodeTLS | None = None
    has_triton: bool = True
    servers: list[grpc.aio.Server] = field(default_factory=list)
    control: Any = None

    async def start(self) -> Node:
        triton = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.triton, triton)
        port = (
            triton.add_insecure_port(LOOPBACK)
            if self.tls is None
            else triton.add_secure_port(LOOPBACK, self.tls.server_credentials())
        )
        link = TritonLink.of(f"127.0.0.1:{port}", self.secret, self.tls) if self.has_triton else None
        agent = grpc.aio.server()
        service = TritonControlService(NodeAgent(None, Devices({"cpu": 1})), link)  # type: ignore[arg-type]
        triton_control_pb2_grpc.add_TritonControlServicer_to_server(service, agent)
        address = f"127.0.0.1:{agent.add_insecure_port(LOOPBACK)}"
        self.servers = [triton, agent]
        for server in self.servers:
            await server.start()
        self.channel = grpc.aio.insecure_channel(address)
        self.control = triton_control_pb2_grpc.TritonControlStub(self.channel)
        return self

    async def refused(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self.control, method)(request, timeout=10)
        return caught.value.code(), caught.value.details() or ""

    async def stop(self) -> None:
        await self.channel.close()
        for server in self.servers:
            await server.stop(None)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    running = await Node().start()
    yield running
    await running.stop()


async def test_the_leaders_loads_and_unloads_happen(node: Node):
    await node.control.Load(pb.LoadRequest(epoch=1, model="m", config="{}"), timeout=10)
    await node.control.Load(pb.LoadRequest(epoch=1, model="foreign"), timeout=10)
    await node.control.Unload(pb.UnloadRequest(epoch=1, model="m"), timeout=10)
    assert node.triton.asked == [("load", "m", "{}"), ("load", "foreign", ""), ("unload", "m", "")]


@pytest.mark.parametrize(
    ("method", "late"), [("Load", pb.LoadRequest(epoch=4, model="m")), ("Unload", pb.UnloadRequest(epoch=4, model="m"))]
)
async def test_once_another_leads_a_late_effect_does_not_reach_triton(node: Node, method: str, late: Any):
    await node.control.Lead(pb.LeadRequest(epoch=4), timeout=10)
    await node.control.Lead(pb.LeadRequest(epoch=5), timeout=10)
    code, words = await node.refused(method, late)
    assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, "epoch 4 is over; 5 leads")
    assert node.triton.asked == []


async def test_nobody_leads_again_with_an_epoch_that_is_over(node: Node):
    await node.control.Lead(pb.LeadRequest(epoch=5), timeout=10)
    code, _ = await node.refused("Lead", pb.LeadRequest(epoch=4))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_tritons_own_error_is_the_callers(node: Node):
    node.triton.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "failed to load 'm', no such file")
    assert await node.refused("Load", pb.LoadRequest(epoch=1, model="m")) == node.triton.refusal


async def test_an_agent_that_knows_no_triton_says_so():
    node = await Node(has_triton=False).start()
    code, words = await node.refused("Unload", pb.UnloadRequest(epoch=1, model="m"))
    assert (code, words) == (grpc.StatusCode.UNIMPLEMENTED, "this agent was not told where its Triton is")
    await node.stop()


async def test_triton_is_shown_the_nodes_secret_over_tls_by_the_name_of_its_certificate(tmp_path: Path):
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("node")
    tls = NodeTLS(certificate_file=certificate, key_file=key, ca_file=authority.file)
    secret = NodeSecret.create(tmp_path / "secret")
    node = await Node(secret=secret, tls=tls).start()
    await node.control.Load(pb.LoadRequest(epoch=1, model="m"), timeout=10)
    assert node.triton.metadata.items() >= dict(secret.triton_metadata).items()
    assert tls.own_name() == "localhost"
    await node.stop()


def test_a_certificate_for_nobody_is_named(tmp_path: Path):
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("node", for_this_machine=False)
    nameless = NodeTLS(certificate_file=certificate, key_file=key, ca_file=authority.file)
    with pytest.raises(CertificateUnusable, match=r"node\.pem: is for no name"):
        nameless.own_name()
