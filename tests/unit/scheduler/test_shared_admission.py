"""Gateways of several schedulers and whoever leads: control loops over fake effects, admission.proto over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.cli.cluster import free_ports
from serverless_triton.scheduler import admission_wire, desk
from serverless_triton.scheduler.admission import (
    Assignment,
    Comparison,
    Exactness,
    ReplicaId,
    ServerName,
    Span,
    StartRecord,
    StartTerms,
    StreamId,
)
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.desk import Desk
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity, SchedulerError, UnknownModel
from serverless_triton.scheduler.identity import Caller, ModelRule
from serverless_triton.scheduler.leader_client import LeaderClient
from serverless_triton.scheduler.leader_service import LeaderService
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.shared_admission import SharedAdmission
from serverless_triton.scheduler.view import Phase
from tests.unit.scheduler.worlds import World, model, settle, world

A = model("a")
S = StreamId("s")


def desk_of(w: World, *expected: str) -> Desk:
    made = Desk(w.loop, set(expected), may_decide_from_s=2.0)
    w.loop.news.on_adopted = made.adopted
    return made


@asynccontextmanager
async def listening(service: LeaderService) -> AsyncIterator[str]:
    """Its address."""
    (port,) = free_ports(1)
    server = await service.listen(f"127.0.0.1:{port}", None)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def following(admission: SharedAdmission, address: str, links: NodeLinks | None = None) -> AsyncIterator[None]:
    client = LeaderClient("gateway-1", address, links or NodeLinks(), held=admission.held, on_lost=admission.lost)
    task = asyncio.ensure_future(client.run())
    admission.follow(client)
    try:
        yield
    finally:
        admission.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not in time")


async def test_a_follower_gets_places_gives_them_back_and_knows_what_runs() -> None:
    w = world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    async with listening(LeaderService(desk_of(w))) as address, following(admission, address):
        place = await admission.admit(
            S, "a", timeout_s=5.0, caller=Caller(tenant="t", models=ModelRule(patterns=("a",)))
        )
        replica = w.loop.cluster.replicas[place.replica]
        assert (place.server, place.grpc_address, replica.streams) == ("s0", "s0:8001", {S})
        admission.progress(S, input_tokens=3, output_tokens=4)
        await until(lambda: replica.held_tokens == {S: 7})
        await until(lambda: admission.runs("a", ""))
        assert (admission.ready_models(), admission.can_serve()) == (frozenset({"a"}), True)
        assert (await admission.outlook("a")).queue_position == 0
        assert (await admission.status())["epoch"] == w.loop.epoch
        admission.finish(place)
        await until(lambda: not replica.streams)


async def test_a_follower_hears_that_its_replica_is_lost() -> None:
    w = world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    async with listening(LeaderService(desk_of(w))) as address, following(admission, address):
        place = await admission.admit(S, "a", timeout_s=5.0)
        w.loop.news.lose(w.loop.cluster.replicas[place.replica], "its worker died")
        assert await asyncio.wait_for(place.lost, 5.0) == "its worker died"


async def test_a_refusal_is_the_leaders_own() -> None:
    w = world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    async with listening(LeaderService(desk_of(w))) as address, following(admission, address):
        with pytest.raises(UnknownModel, match="'nope' is not found"):
            await admission.admit(S, "nope", timeout_s=5.0)


async def test_a_request_that_nobody_waits_for_any_more_holds_nothing() -> None:
    w = world("s0", models=(A,), automatic=False)
    admission = SharedAdmission("gateway-1")
    async with listening(LeaderService(desk_of(w))) as address, following(admission, address):
        asking = asyncio.ensure_future(admission.admit(S, "a", timeout_s=60.0))
        await until(lambda: w.loop.cluster.replicas)
        (replica,) = w.loop.cluster.replicas.values()
        assert replica.streams == {S}
        asking.cancel()
        await until(lambda: not replica.streams)


async def test_who_waits_when_the_leader_changes_is_asked_again_of_the_next() -> None:
    stuck, next_one = world("s0", models=(A,), automatic=False), world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    async with listening(LeaderService(desk_of(stuck))) as address:
        async with following(admission, address):
            asking = asyncio.ensure_future(admission.admit(S, "a", timeout_s=60.0))
            await until(lambda: stuck.loop.cluster.replicas)
        admission.lead(desk_of(next_one))
        place = await asyncio.wait_for(asking, 5.0)
    assert next_one.loop.cluster.replicas[place.replica].streams == {S}


async def test_a_control_loop_that_ends_refuses_nobody_who_can_ask_another() -> None:
    ending, next_one = world("s0", models=(A,), automatic=False), world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    admission.lead(desk_of(ending))
    asking = asyncio.ensure_future(admission.admit(S, "a", timeout_s=60.0))
    await settle()
    admission.wait()
    await ending.loop.close()
    await settle()
    admission.lead(desk_of(next_one))
    assert (await asyncio.wait_for(asking, 5.0)).model == "a"


async def test_where_nobody_leads_a_request_ends_with_its_time() -> None:
    with pytest.raises(AdmissionTimeout, match=r"'a' did not start within 0\.05 s"):
        await SharedAdmission("gateway-1").admit(S, "a", timeout_s=0.05)


async def test_a_scheduler_that_does_not_lead_says_so_and_is_asked_until_it_does() -> None:
    service, w = LeaderService(), world("s0", models=(A,))
    admission = SharedAdmission("gateway-1")
    async with listening(service) as address, following(admission, address):
        asking = asyncio.ensure_future(admission.admit(S, "a", timeout_s=60.0))
        await asyncio.sleep(0.05)
        service.desk = desk_of(w)
        assert (await asyncio.wait_for(asking, 5.0)).model == "a"


async def test_whoever_does_not_show_the_secret_gets_nothing(tmp_path: Path) -> None:
    w = world("s0", models=(A,))
    file = tmp_path / "secret"
    service = LeaderService(desk_of(w), NodeSecret.create(file))
    admission = SharedAdmission("gateway-1")
    async with listening(service) as address:
        async with following(admission, address):
            with pytest.raises(AdmissionTimeout):
                await admission.admit(S, "a", timeout_s=0.3)
        async with following(admission, address, NodeLinks.of(file)):
            assert (await admission.admit(S, "a", timeout_s=5.0)).model == "a"


def adopted(w: World, name: str) -> ReplicaState:
    replica = ReplicaState(
        id=ReplicaId(name),
        model=A,
        server=ServerName("s0"),
        phase=Phase.READY,
        lost=asyncio.get_running_loop().create_future(),
    )
    w.loop.news.adopt(replica)
    return replica


async def test_places_of_an_earlier_leader_are_held_as_soon_as_their_replica_is_adopted() -> None:
    w = world("s0", models=(A,))
    heard: list[tuple[desk.Place, str]] = []
    d = desk_of(w, "g")
    assert not d.is_complete
    d.come("g", [(S, ReplicaId("a-1"))], lambda place, reason: heard.append((place, reason)))
    assert d.is_complete
    replica = adopted(w, "a-1")
    assert replica.streams == {S}
    w.loop.news.lose(replica, "gone")
    await settle()
    assert heard == [((S, "a-1"), "gone")]


async def test_gateways_that_do_not_come_are_not_waited_for_longer_than_a_moment() -> None:
    w = world("s0", models=(A,))
    d = desk_of(w, "never")
    w.clock.now_s = 1.9
    assert not d.is_complete
    w.clock.now_s = 2.0
    assert d.is_complete


async def test_a_gateway_that_comes_again_keeps_what_it_says_and_nothing_else() -> None:
    w = world("s0", models=(A,))
    d, replica = desk_of(w), adopted(w, "a-1")
    other = StreamId("other")
    visit = d.come("g", [(S, replica.id), (other, replica.id)], lambda place, reason: None)
    d.leave("g", visit)
    assert replica.streams == {S, other}
    d.come("g", [(other, replica.id)], lambda place, reason: None)
    assert replica.streams == {other}
    d.close()


async def test_a_gateway_that_does_not_come_again_loses_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "GONE_S", 0.01)
    w = world("s0", models=(A,))
    d, replica = desk_of(w), adopted(w, "a-1")
    d.leave("g", d.come("g", [(S, replica.id)], lambda place, reason: None))
    await until(lambda: not replica.streams)


async def test_an_assignment_crosses_with_its_start_on_the_other_clock() -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    terms = StartTerms(queue_s=0.0, transfer_s=1.0, fixed_s=0.25)
    start = StartRecord(
        tier="ssd",
        bytes=5,
        spans=(Span(name="schedule", start_s=101.0, end_s=102.0, parent="admission"),),
        predicted_s=1.0,
        comparison=Comparison(predicted=terms, uncertainty_s=0.1, actual=terms),
    )
    given = Assignment(
        stream=S,
        model="a",
        server=ServerName("s0"),
        grpc_address="s0:8001",
        replica=ReplicaId("a-1"),
        epoch=7,
        start=start,
        exactness=Exactness(kind="exact", reason="proven", contract="0"),
        lost=lost,
    )
    got = admission_wire.read_assignment(admission_wire.pack_assignment(given, 100.0), 10.0, lost)
    assert got.start is not None
    assert got.start.spans == (Span(name="schedule", start_s=11.0, end_s=12.0, parent="admission"),)
    assert got.start.comparison == start.comparison
    assert (got.exactness, got.epoch, got.replica) == (given.exactness, 7, "a-1")


@pytest.mark.parametrize(
    "error",
    [NoCapacity("full", retry_after_s=2.0), UnknownModel("no"), LoadFailed("broke", "INTERNAL"), SchedulerError("odd")],
)
def test_an_error_crosses_with_its_kind_its_code_and_when_to_come_again(error: SchedulerError) -> None:
    got = admission_wire.read_trouble(admission_wire.pack_trouble(error))
    assert (type(got), got.code, str(got), got.retry_after_s) == (
        type(error),
        error.code,
        str(error),
        error.retry_after_s,
    )


def test_an_error_of_a_kind_that_this_version_does_not_know_keeps_its_code() -> None:
    class Newer(SchedulerError):
        code = "ABORTED"

    got = admission_wire.read_trouble(admission_wire.pack_trouble(Newer("new")))
    assert (type(got), got.code, str(got)) == (LoadFailed, "ABORTED", "new")
