"""The first policy: where does it start soonest?"""

from __future__ import annotations

import random
from dataclasses import replace

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.policy import Refuse, Start, StartRequest, Use, Wait, choose
from tests.unit.scheduler.worlds import GB, model, replica, server, view

WANTED = model("m")
OTHER = model("other", device_bytes=2 * GB)


def started_on(decision: object) -> tuple[str, tuple[str, ...]]:
    action = decision.action  # type: ignore[attr-defined]
    assert isinstance(action, Start), action
    return action.candidate.server, action.candidate.evict


def test_a_ready_replica_with_the_fewest_streams_is_used() -> None:
    world = view([server("s0"), server("s1")], [replica("r1", "s0", WANTED, streams=1), replica("r2", "s1", WANTED)])
    assert choose(world, StartRequest(model=WANTED)).action == Use(replica=ReplicaId("r2"))


def test_a_replica_that_is_being_started_is_joined_and_not_started_twice() -> None:
    world = view([server("s0"), server("s1")], [replica("r1", "s0", WANTED, streams=1, loading=True)])
    assert choose(world, StartRequest(model=WANTED)).action == Use(replica=ReplicaId("r1"))


def test_a_ready_replica_is_preferred_to_a_loading_one() -> None:
    replicas = [replica("r1", "s0", WANTED, loading=True), replica("r2", "s1", WANTED, streams=1)]
    world = view([server("s0"), server("s1")], replicas)
    assert choose(world, StartRequest(model=WANTED)).action == Use(replica=ReplicaId("r2"))


def test_it_starts_where_its_checkpoint_is_in_dram() -> None:
    world = view([server("s0"), server("s1", in_dram=frozenset({WANTED.checkpoint}))])
    assert started_on(choose(world, StartRequest(model=WANTED))) == ("s1", ())


def test_a_long_load_queue_is_worse_than_a_slower_disk() -> None:
    slow = server("s1", bandwidth={"ssd": 0.5 * GB, "dram": 20.0 * GB})
    world = view([server("s0", queued_bytes=3 * GB), slow])
    assert started_on(choose(world, StartRequest(model=WANTED))) == ("s1", ())


def test_ties_are_broken_by_name() -> None:
    servers = [server(f"s{i}") for i in range(4)]
    random.Random(0).shuffle(servers)
    assert started_on(choose(view(servers), StartRequest(model=WANTED))) == ("s0", ())


def test_the_least_recently_used_idle_replica_makes_room() -> None:
    idle = [replica("old", "s0", model("a"), idle_since_s=1.0), replica("new", "s0", model("b"), idle_since_s=2.0)]
    assert started_on(choose(view([server("s0")], idle), StartRequest(model=WANTED))) == ("s0", ("old",))


def test_a_replica_that_a_stream_holds_is_never_evicted() -> None:
    busy = [replica("busy", "s0", OTHER, streams=1)]
    decision = choose(view([server("s0")], busy), StartRequest(model=WANTED))
    assert decision.action == Wait(reason="every server is busy")
    assert decision.rejected == {"busy": 1}


def test_weights_count_in_the_memory_of_a_device_that_holds_them() -> None:
    """2 GB of device memory hold one replica of 1 GB beside 1 GB of weights, and none with 2 GB of weights."""
    gpu = view([server("s0", device_holds_weights=True)], [replica("r", "s0", OTHER)])
    assert started_on(choose(gpu, StartRequest(model=WANTED))) == ("s0", ("r",))
    assert isinstance(choose(gpu, StartRequest(model=model("m", size=2 * GB))).action, Refuse)


def test_a_replica_still_loading_is_never_evicted() -> None:
    loading = [replica("loading", "s0", OTHER, loading=True)]
    assert isinstance(choose(view([server("s0")], loading), StartRequest(model=WANTED)).action, Wait)


def test_weights_of_one_checkpoint_count_once_in_dram() -> None:
    twin = model("twin", size=3 * GB)
    wanted = model("m", size=3 * GB)
    shared = replica("r", "s0", twin)
    apart = view([server("s0")], [shared])
    assert started_on(choose(apart, StartRequest(model=wanted))) == ("s0", ("r",))
    same = model("m", size=3 * GB)
    object.__setattr__(same, "checkpoint", twin.checkpoint)
    assert started_on(choose(apart, StartRequest(model=same))) == ("s0", ())


def test_a_model_too_large_for_every_server_is_refused_with_the_numbers() -> None:
    action = choose(view([server("s0")]), StartRequest(model=model("huge", device_bytes=9 * GB))).action
    assert isinstance(action, Refuse)
    assert str(9 * GB) in action.reason


def test_without_a_server_it_waits() -> None:
    assert choose(view([]), StartRequest(model=WANTED)).action == Wait(reason="no server is up")


def test_a_replica_to_be_avoided_is_not_used() -> None:
    world = view([server("s0"), server("s1")], [replica("r1", "s0", WANTED)])
    request = StartRequest(model=WANTED, avoid=frozenset({ReplicaId("r1")}))
    assert started_on(choose(world, request)) == ("s1", ())


def test_a_server_to_be_avoided_gets_no_start() -> None:
    request = StartRequest(model=WANTED, avoid_servers=frozenset({ServerName("s0")}))
    assert started_on(choose(view([server("s0"), server("s1")]), request)) == ("s1", ())


def test_a_full_replica_leads_to_a_second_one_elsewhere() -> None:
    world = view([server("s0"), server("s1")], [replica("r1", "s0", WANTED, streams=2)])
    assert started_on(choose(world, StartRequest(model=WANTED))) == ("s1", ())


def test_the_same_view_gives_the_same_decision_and_its_best_eight() -> None:
    servers = [server(f"s{i:02}", queued_bytes=i * GB) for i in range(20)]
    decisions = []
    for seed in range(3):
        random.Random(seed).shuffle(servers)
        decisions.append(choose(view(servers), StartRequest(model=WANTED)))
    assert decisions[0] == decisions[1] == decisions[2]
    assert [c.server for c in decisions[0].candidates] == [f"s{i:02}" for i in range(8)]
    assert decisions[0].view_version == 7


def test_it_starts_where_a_parked_stub_waits_for_it() -> None:
    world = view([server("s0"), server("s1", parked={WANTED.name: ReplicaId("m-1")})])
    action = choose(world, StartRequest(model=WANTED)).action
    assert isinstance(action, Start)
    assert (action.candidate.server, action.candidate.parked) == ("s1", "m-1")


def test_weights_in_dram_are_worth_more_than_a_parked_stub() -> None:
    parked = server("s0", parked={WANTED.name: ReplicaId("m-1")})
    world = view([parked, server("s1", in_dram=frozenset({WANTED.checkpoint}))])
    assert started_on(choose(world, StartRequest(model=WANTED))) == ("s1", ())


def test_an_idle_pinned_replica_makes_room_for_its_models_newest_definition() -> None:
    newest = replace(model("m", definition="new"), pinned=True)
    older = replica("m-old", "s0", replace(model("m", definition="old"), pinned=True))
    busy = replica("b-1", "s0", model("b"), streams=1)
    decision = choose(view([server("s0")], [older, busy]), StartRequest(model=newest, avoid=frozenset({older.id})))
    assert started_on(decision) == ("s0", ("m-old",))


def test_an_idle_pinned_replica_makes_room_for_no_other_model() -> None:
    pinned = replica("p-1", "s0", replace(model("p"), pinned=True))
    busy = replica("b-1", "s0", model("b"), streams=1)
    decision = choose(view([server("s0")], [pinned, busy]), StartRequest(model=model("m")))
    assert isinstance(decision.action, Wait)
