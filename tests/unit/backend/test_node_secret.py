"""The secret of a cluster: its file, and what is made of it."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pytest

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.agent_server import SecretCalls
from serverless_triton.backend.node_secret import AGENT_HEADER, NodeSecret, SecretUnusable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def test_a_new_one_is_in_a_file_of_its_user_alone(file: Path):
    made = NodeSecret.create(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert NodeSecret.read(file) == made
    assert len(bytes.fromhex(file.read_text())) == 32


def test_a_file_that_is_there_is_not_overwritten(file: Path):
    file.touch()
    with pytest.raises(FileExistsError):
        NodeSecret.create(file)
    file.unlink()
    file.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(OSError, match="secret"):
        NodeSecret.create(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_open_is_refused(file: Path, mode: int):
    NodeSecret.create(file)
    file.chmod(mode)
    with pytest.raises(SecretUnusable, match=f"may be read by others; chmod 600 {file}"):
        NodeSecret.read(file)


def test_a_file_without_a_secret_is_refused(file: Path):
    with pytest.raises(SecretUnusable, match="cannot be read: No such file"):
        NodeSecret.read(file)
    file.touch(0o600)
    with pytest.raises(SecretUnusable, match="too short"):
        NodeSecret.read(file)


def test_what_one_service_is_shown_says_nothing_about_the_other_or_the_secret(file: Path):
    secret = NodeSecret.create(file)
    text = file.read_text().strip()
    assert len({secret.for_triton, secret.for_agent, text}) == 3
    assert text not in repr(secret)
    assert NodeSecret.create(file.with_name("another")).for_triton != secret.for_triton


def test_only_the_agents_own_digest_opens_it(file: Path):
    secret = NodeSecret.create(file)
    assert secret.is_shown_in((("user-agent", "x"), *secret.agent_metadata))
    for metadata in (None, (), secret.triton_metadata, ((AGENT_HEADER, secret.for_triton),), ((AGENT_HEADER, "ü"),)):
        assert not secret.is_shown_in(metadata)


class Agent(agent_pb2_grpc.NodeAgentServicer):
    """Serves everybody whom it sees."""

    async def Watch(self, request, context):  # noqa: N802
        yield agent_pb2.NodeState(node="n")

    async def Park(self, request, context):  # noqa: N802
        return agent_pb2.ParkReply(version=1)


@pytest.fixture
async def agent(file: Path):
    server = grpc.aio.server(interceptors=[SecretCalls(NodeSecret.create(file))])
    agent_pb2_grpc.add_NodeAgentServicer_to_server(Agent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield agent_pb2_grpc.NodeAgentStub(channel)
    await server.stop(None)


async def test_an_agent_serves_those_who_show_it(agent, file: Path):
    metadata = NodeSecret.read(file).agent_metadata
    assert (await agent.Park(agent_pb2.ParkRequest(), metadata=metadata)).version == 1
    assert [state.node async for state in agent.Watch(agent_pb2.WatchRequest(), metadata=metadata)] == ["n"]


@pytest.mark.parametrize("metadata", [(), ((AGENT_HEADER, "guess"),)])
async def test_an_agent_serves_nobody_else(agent, metadata, caplog):
    with pytest.raises(grpc.aio.AioRpcError) as one:
        await agent.Park(agent_pb2.ParkRequest(), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as many:
        await agent.Watch(agent_pb2.WatchRequest(), metadata=metadata).read()
    assert one.value.code() is many.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [record.getMessage().split()[:2] for record in caplog.records] == [
        ["call_refused", f"method=/serverless_triton.backend.NodeAgent/{name}"] for name in ("Park", "Watch")
    ]
    assert "guess" not in caplog.text
