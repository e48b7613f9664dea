"""TLS between the scheduler and a node's agent: both sides show a certificate of one authority."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.agent_server import AgentConfig, _grpc_server
from serverless_triton.backend.node_tls import CertificateUnusable, NodeTLS
from serverless_triton.backend.triton_server import _certificates
from serverless_triton.scheduler.node_links import NodeLinks
from tests.certificates import Authority


def side(authority: Authority, name: str) -> NodeTLS:
    certificate, key = authority.issue(name)
    return NodeTLS(certificate_file=certificate, key_file=key, ca_file=authority.file)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


class Agent(agent_pb2_grpc.NodeAgentServicer):
    async def Park(self, request, context):  # noqa: N802
        return agent_pb2.ParkReply(version=1)


@pytest.fixture
async def address(authority: Authority, unused_tcp_port: int):
    nowhere = Path("nowhere")
    config = AgentConfig(
        node="n",
        socket=nowhere,
        grpc_address=f"127.0.0.1:{unused_tcp_port}",
        zygote_socket=nowhere,
        store_socket=nowhere,
        model_repository=nowhere,
        device_memory_bytes=1,
        tls=side(authority, "node"),
    )
    server = await _grpc_server(config, Agent())  # type: ignore[arg-type]
    yield config.grpc_address
    await server.stop(None)


async def version(address: str, links: NodeLinks) -> int:
    async with links.channel(address, ()) as channel:
        reply = await agent_pb2_grpc.NodeAgentStub(channel).Park(agent_pb2.ParkRequest(), timeout=5)
        return int(reply.version)


async def test_a_scheduler_with_a_certificate_of_the_authority_is_served(address: str, authority: Authority):
    assert await version(address, NodeLinks.of(None, side(authority, "scheduler"))) == 1


async def test_nobody_else_is(address: str, authority: Authority, tmp_path: Path):
    strangers = side(Authority(tmp_path / "other"), "scheduler")
    credentials = [
        None,
        grpc.ssl_channel_credentials(authority.file.read_bytes()),
        replace(strangers, ca_file=authority.file).channel_credentials(),
    ]
    for one in credentials:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await version(address, NodeLinks(credentials=one))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_node_that_another_authority_signed_is_not_trusted(address: str, tmp_path: Path):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await version(address, NodeLinks.of(None, side(Authority(tmp_path / "other"), "scheduler")))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path):
    good = side(authority, "node")
    for wrong in (
        replace(good, key_file=side(authority, "other").key_file),
        replace(good, ca_file=tmp_path / "nowhere"),
        replace(good, certificate_file=good.key_file),
    ):
        with pytest.raises(CertificateUnusable, match=f"cannot use {wrong.certificate_file}, {wrong.key_file}"):
            wrong.server_credentials()
        with pytest.raises(CertificateUnusable, match="TLS between scheduler and nodes"):
            wrong.channel_credentials()
        with pytest.raises(CertificateUnusable):
            _certificates(wrong)
