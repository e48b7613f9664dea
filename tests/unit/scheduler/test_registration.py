"""Servers that announce themselves: whom the scheduler takes, by hand; and over real connections, with real watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc, triton_control_pb2, triton_control_pb2_grpc
from serverless_triton.backend.announcer import Announcer
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.cli.cluster import free_ports
from serverless_triton.scheduler.admission import ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.registration import (
    AnnouncementTaken,
    BadAnnouncement,
    Members,
    RegistrationSettings,
    ServerConfig,
    TooManyServers,
)
from serverless_triton.scheduler.registry import Comings, Registry
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.state.protocol import FakeLeadership
from serverless_triton.scheduler.triton_effects import TritonEffects
from tests.certificates import Authority
from tests.unit.scheduler.worlds import GB, World, model, world

SETTINGS = RegistrationSettings(port=1, heartbeat_s=2.0, missed_beats=3, max_servers=2)
ONE = ServerConfig(name="one", triton="10.0.0.1:8001", agent="10.0.0.1:8003")
TWO = ServerConfig(name="two", triton="10.0.0.2:8001", agent="10.0.0.2:8003")
S0 = ServerName("one")


def test_a_server_is_new_once_and_silent_after_its_missed_beats():
    members = Members(SETTINGS)
    assert [members.hear(ONE, 0.0), members.hear(ONE, 2.0)] == [True, False]
    assert members.silent(8.0) == ()
    assert members.silent(8.1) == ("one",)


def test_a_server_that_was_dropped_may_come_again_elsewhere():
    members = Members(SETTINGS)
    members.hear(ONE, 0.0)
    members.drop(["one"])
    assert members.silent(99.0) == ()
    assert members.hear(replace(TWO, name="one"), 99.0)


@pytest.mark.parametrize(
    ("listed", "announced", "server", "words"),
    [
        ((), ONE, replace(TWO, name="one"), "a server named 'one' is there already"),
        ((ONE,), None, replace(TWO, name="one"), "a server named 'one' is there already"),
        ((ONE,), None, ONE, "a server named 'one' is there already"),
        ((), ONE, replace(TWO, agent=ONE.agent), "10.0.0.1:8003 is the address of server 'one'"),
        ((ONE,), None, replace(TWO, triton=ONE.triton), "10.0.0.1:8001 is the address of server 'one'"),
    ],
)
def test_nobody_passes_for_another_server(
    listed: tuple[ServerConfig, ...], announced: ServerConfig | None, server: ServerConfig, words: str
):
    members = Members(SETTINGS, listed)
    if announced is not None:
        members.hear(announced, 0.0)
    with pytest.raises(AnnouncementTaken, match=words):
        members.hear(server, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "node: give a name"),
        ({"name": "a b"}, "node: give a name"),
        ({"name": "n" * 65}, "node: give a name"),
        ({"name": "../one"}, "node: give a name"),
        ({"triton": ""}, "triton: give its gRPC address"),
        ({"triton": "10.0.0.1"}, "triton: give its gRPC address"),
        ({"triton": "10.0.0.1:0"}, "triton: give its gRPC address"),
        ({"agent": "10.0.0.1:65536"}, "agent: give its gRPC address"),
        ({"agent": "unix:/run/agent"}, "agent: give its gRPC address"),
        ({"agent": "a\n:8003"}, "agent: give its gRPC address"),
        ({"agent": "0.0.0.0:8003"}, "give --announced-host"),
        ({"agent": ONE.triton}, "cannot be both"),
    ],
)
def test_a_name_or_an_address_that_is_none_is_refused(change: dict[str, str], words: str):
    members = Members(SETTINGS)
    with pytest.raises(BadAnnouncement, match=words):
        members.hear(replace(ONE, **change), 0.0)
    assert members.silent(99.0) == ()


def test_no_more_servers_than_the_limit():
    members = Members(SETTINGS)
    members.hear(ONE, 0.0)
    members.hear(TWO, 0.0)
    with pytest.raises(TooManyServers, match="raise max_servers"):
        members.hear(ServerConfig(name="three", triton="[::1]:1", agent="[::1]:2"), 0.0)


class Machine(
    agent_pb2_grpc.NodeAgentServicer,
    triton_control_pb2_grpc.TritonControlServicer,
    service_pb2_grpc.GRPCInferenceServiceServicer,
):
    """A node's gRPC: an agent that shows one state to whoever leads, a Triton that is live and has loaded nothing."""

    async def Lead(self, request: triton_control_pb2.LeadRequest, context: Any) -> triton_control_pb2.LeadReply:
        return triton_control_pb2.LeadReply()

    async def Watch(self, request: agent_pb2.WatchRequest, context: Any) -> AsyncIterator[agent_pb2.NodeState]:
        yield agent_pb2.NodeState(node="one", version=1, workers_ready=True, dram_bytes=GB, device_memory_bytes=GB)
        await asyncio.sleep(60.0)

    async def ServerLive(self, request: service_pb2.ServerLiveRequest, context: Any) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def RepositoryIndex(
        self, request: service_pb2.RepositoryIndexRequest, context: Any
    ) -> service_pb2.RepositoryIndexResponse:
        return service_pb2.RepositoryIndexResponse()


@asynccontextmanager
async def machine() -> AsyncIterator[ServerConfig]:
    """A node's two ports, open."""
    ports, servers = free_ports(2), []
    for port in ports:
        one = grpc.aio.server()
        agent_pb2_grpc.add_NodeAgentServicer_to_server(Machine(), one)
        triton_control_pb2_grpc.add_TritonControlServicer_to_server(Machine(), one)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Machine(), one)
        one.add_insecure_port(f"127.0.0.1:{port}")
        await one.start()
        servers.append(one)
    try:
        yield ServerConfig(name="one", triton=f"127.0.0.1:{ports[0]}", agent=f"127.0.0.1:{ports[1]}")
    finally:
        for one in servers:
            await one.stop(grace=None)


def effects() -> TritonEffects:
    return TritonEffects(
        {},
        lambda model, definition: model_config_pb2.ModelConfig(),
        time.monotonic,
        links=NodeLinks(),
        epoch=lambda: 1,
        load_timeout_s=5.0,
        release_timeout_s=5.0,
    )


def registry(w: World, secret: NodeSecret | None = None, tls: NodeTLS | None = None) -> Registry:
    (port,) = free_ports(1)
    settings = RegistrationSettings(port=port, heartbeat_s=0.05, missed_beats=3)
    comings = Comings(
        loop=w.loop,
        effects=effects(),
        watch_of=lambda server, agent: ServerWatch(w.loop, server, agent, FakeLeadership()),
    )
    return Registry(members=Members(settings), comings=comings, clock=time.monotonic, secret=secret, tls=tls)


def announcer(books: Registry, server: ServerConfig, **options: Any) -> Announcer:
    card = agent_pb2.Announcement(node=server.name, triton=server.triton, agent=server.agent)
    return Announcer(server=card, schedulers=[f"127.0.0.1:{books.members.settings.port}"], **options)


@asynccontextmanager
async def running(*works: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async def come() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for is another's state
            await asyncio.sleep(0.01)

    await asyncio.wait_for(come(), 10.0)


async def test_a_server_that_announces_itself_takes_starts():
    w = world(models=(model("a"),))
    books = registry(w)
    async with machine() as server, running(books.run(), announcer(books, server).run()):
        await until(lambda: w.loop.cluster.view().server(S0) is not None)
        place = await w.loop.admit(StreamId("s"), "a", timeout_s=5.0)
        assert place.server == "one"


async def test_a_server_that_says_nothing_and_answers_nothing_is_gone_and_its_streams_hear_of_it():
    w = world(models=(model("a"),))
    books = registry(w)
    async with running(books.run()):
        async with machine() as server, running(announcer(books, server).run()):
            await until(lambda: w.loop.cluster.view().server(S0) is not None)
            place = await w.loop.admit(StreamId("s"), "a", timeout_s=5.0)
            lost = w.loop.cluster.replicas[place.replica].lost
        await until(lambda: S0 not in w.loop.cluster.servers)
    assert lost.done()
    assert w.loop.cluster.replicas == {}
    assert w.loop.cluster.view().servers == ()


async def test_a_server_that_misses_its_beats_but_answers_stays():
    w = world()
    books = registry(w)
    async with machine() as server, running(books.run()):
        async with running(announcer(books, server).run()):
            await until(lambda: w.loop.cluster.view().server(S0) is not None)
        await until(lambda: books.members.silent(time.monotonic()) == ("one",))
        await books.sweep()
        assert w.loop.cluster.view().server(S0) is not None


async def test_a_server_comes_back_after_it_was_gone():
    w = world()
    books = registry(w)
    async with running(books.run()):
        for _ in range(2):
            async with machine() as server, running(announcer(books, server).run()):
                await until(lambda: w.loop.cluster.view().server(S0) is not None)
            await until(lambda: S0 not in w.loop.cluster.servers)


async def test_effects_on_a_server_that_is_gone_fail_as_such():
    real = effects()
    with pytest.raises(EffectFailed, match="server one is gone") as failed:
        await real.release_engine(S0, ReplicaId("r"), 1)
    assert failed.value.code == "UNAVAILABLE"


async def test_only_who_shows_the_secret_joins(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    secret, other = (NodeSecret.create(tmp_path / name) for name in ("ours", "theirs"))
    w = world()
    books = registry(w, secret)
    async with running(books.run()):
        for metadata in ((), other.registry_metadata, secret.agent_metadata):
            async with running(announcer(books, ONE, metadata=metadata).run()):
                await until(lambda: "UNAUTHENTICATED" in caplog.text)
            caplog.clear()
        assert w.loop.cluster.servers == {}
        async with running(announcer(books, ONE, metadata=secret.registry_metadata).run()):
            await until(lambda: S0 in w.loop.cluster.servers)


async def test_a_refused_agent_asks_again_and_is_told_why(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("serverless_triton.backend.announcer.ASK_AGAIN_S", 0.05)
    w = world()
    books = registry(w)
    async with running(books.run()):
        async with running(announcer(books, ONE).run()):
            await until(lambda: S0 in w.loop.cluster.servers)
            async with running(announcer(books, replace(TWO, name="one")).run()):
                await until(lambda: "ALREADY_EXISTS: a server named 'one' is there already" in caplog.text)
        async with running(announcer(books, replace(TWO, name="one")).run()):
            await until(lambda: w.loop.cluster.servers[S0].grpc_address == TWO.triton if w.loop.cluster.servers else 0)


async def test_announcements_go_over_mutual_tls(tmp_path: Path):
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    ours, theirs, foreign = (
        NodeTLS(certificate_file=certificate, key_file=key, ca_file=authority.file)
        for certificate, key in (authority.issue("scheduler"), authority.issue("node"), stranger.issue("node"))
    )
    w = world()
    books = registry(w, tls=ours)
    async with running(books.run()):
        for credentials in (None, foreign.channel_credentials()):
            async with running(announcer(books, ONE, credentials=credentials).run()):
                await asyncio.sleep(0.3)
        assert w.loop.cluster.servers == {}
        async with running(announcer(books, ONE, credentials=theirs.channel_credentials()).run()):
            await until(lambda: S0 in w.loop.cluster.servers)


async def test_an_address_that_is_taken_is_named():
    w = world()
    first = registry(w)
    async with running(first.run()):
        await asyncio.sleep(0.1)
        with pytest.raises(OSError, match=f"127.0.0.1:{first.members.settings.port} is taken"):
            await registry_at(first.members.settings.port, w).run()


def registry_at(port: int, w: World) -> Registry:
    second = registry(w)
    second.members.settings = replace(second.members.settings, port=port)
    return second
