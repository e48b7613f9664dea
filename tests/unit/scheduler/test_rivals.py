"""Other policies, and that ours is never worse than they are by its own estimate."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.decision import Decision, PolicyName, Start, StartRequest, Use, Wait
from serverless_triton.scheduler.rivals import POLICIES
from serverless_triton.scheduler.view_index import view_of
from tests.unit.scheduler.clusters import drawn
from tests.unit.scheduler.worlds import GB, model, replica, server, view

WANTED = model("m")
LARGE = model("large", device_bytes=2 * GB)
NEAR = frozenset({WANTED.checkpoint})
RIVALS = sorted(POLICIES.keys() - {"startup_time"})


def test_every_name_that_a_configuration_may_give_has_its_policy() -> None:
    assert sorted(POLICIES) == sorted(get_args(PolicyName))


def decided(policy: PolicyName, *arguments: object, **options: object) -> Decision:
    return POLICIES[policy](view(*arguments, **options), StartRequest(model=WANTED))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", RIVALS)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_ours_never_starts_later_than_a_rival_by_its_own_estimate(policy: PolicyName, seed: int) -> None:
    world = drawn(seed)
    wanted = world.models[seed % len(world.models)]
    request = StartRequest(model=wanted, avoid=frozenset(r.id for r in world.replicas if r.model == wanted.name))
    there = view_of(world.servers, world.replicas, version=7, can_migrate=True)
    theirs, ours = POLICIES[policy](there, request).action, POLICIES["startup_time"](there, request).action
    if not isinstance(theirs, Start) or theirs.candidate.preempt:
        return
    spared = {r.id for r in world.replicas if r.model == wanted.name or r.priority > wanted.priority}
    if spared.isdisjoint(theirs.candidate.evict):
        assert isinstance(ours, Start)
        assert ours.candidate.estimate.total_s <= theirs.candidate.estimate.total_s


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_uses_a_replica_that_is_there(policy: PolicyName) -> None:
    assert decided(policy, [server()], [replica("r", "s0", WANTED)]).action == Use(replica=ReplicaId("r"))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_waits_where_no_server_is_up(policy: PolicyName) -> None:
    assert decided(policy, []).action == Wait(reason="no server is up")


def test_random_takes_any_server_and_the_same_one_of_the_same_view() -> None:
    servers = [server(f"s{number}") for number in range(8)]
    chosen = {
        decided_at.action.candidate.server
        for version in range(40)
        if isinstance(
            (decided_at := POLICIES["random"](view_of(servers, version=version), StartRequest(model=WANTED))).action,
            Start,
        )
    }
    assert len(chosen) > 3
    assert decided("random", servers) == decided("random", servers)


def test_locality_waits_for_the_server_that_is_nearest() -> None:
    servers = [server("s0", in_dram=NEAR), server("s1")]
    assert isinstance(decided("locality", servers, [replica("r", "s0", LARGE, streams=1)]).action, Wait)


def test_shepherd_preempts_what_runs_there() -> None:
    servers = [server("s0", in_dram=NEAR), server("s1")]
    action = decided("shepherd", servers, [replica("r", "s0", LARGE, streams=1)]).action
    assert isinstance(action, Start)
    assert (action.candidate.server, action.candidate.preempt, action.candidate.evict) == ("s0", ("r",), ())


def test_who_was_preempted_under_shepherd_starts_where_there_is_room_and_preempts_nobody() -> None:
    preempted = StartRequest(model=WANTED, avoid=frozenset({ReplicaId("gone")}))
    busy = [replica("r", "s0", LARGE, streams=1)]
    seen = view([server("s0", in_dram=NEAR), server("s1")], busy)
    action = POLICIES["shepherd"](seen, preempted).action
    assert isinstance(action, Start)
    assert (action.candidate.server, action.candidate.preempt) == ("s1", ())
    alone = view([server("s0", in_dram=NEAR)], busy)
    assert isinstance(POLICIES["shepherd"](alone, preempted).action, Wait)


def test_least_loaded_starts_where_the_fewest_streams_are() -> None:
    small = model("small", device_bytes=1)
    action = decided(
        "least_loaded", [server("s0", in_dram=NEAR), server("s1")], [replica("r", "s0", small, streams=1)]
    ).action
    assert isinstance(action, Start)
    assert action.candidate.server == "s1"
