"""What holds of every decision, whatever the cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.decision import Candidate, Decision, Start, StartRequest
from serverless_triton.scheduler.estimator import estimate_start
from serverless_triton.scheduler.policy import choose
from serverless_triton.scheduler.survey import TOO_LARGE, Survey, consider
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView, ServerView
from serverless_triton.scheduler.view_index import ViewIndex, view_of
from tests.unit.scheduler.clusters import NEW, Drawn, drawn, is_kept

seeds = st.integers(min_value=0, max_value=1 << 32)
often = settings(max_examples=150, deadline=None)


def seen(world: Drawn, *, can_migrate: bool = True) -> ClusterView:
    return view_of(world.servers, world.replicas, version=7, can_migrate=can_migrate)


def wanted(world: Drawn, seed: int) -> StartRequest:
    """A model that is to start: nothing that runs of it may be used."""
    model = world.models[seed % len(world.models)]
    return StartRequest(model=model, avoid=frozenset(r.id for r in world.replicas if r.model == model.name))


def one_by_one(view: ClusterView, model: ModelView) -> list[Candidate]:
    """Every server looked at for itself: the best eight without moves."""
    outcomes = [
        consider(server, view.on_server(server.name), model)
        for server in view.servers
        if not server.draining and not isinstance(consider(server, (), model), str)
    ]
    found = sorted(outcome for outcome in outcomes if not isinstance(outcome, str))
    return [candidate for _, candidate in found[:8]]


@often
@given(seeds)
def test_all_servers_at_once_come_out_as_they_do_one_by_one(seed: int) -> None:
    world = drawn(seed, servers=24)
    for model in world.models:
        view = seen(world, can_migrate=False)
        assert [candidate for _, candidate in Survey.of(view, model).best()] == one_by_one(view, model)


@often
@given(seeds)
def test_columns_say_what_the_estimator_says_of_each_server(seed: int) -> None:
    world = drawn(seed)
    view = seen(world)
    for model in world.models:
        start_s = view.index.columns.start_s(model)
        for server in view.servers:
            assert start_s[view.index.columns.row_of[server.name]] == estimate_start(server, model).total_s


@often
@given(seeds)
def test_every_server_is_a_candidate_or_rejected_for_one_reason(seed: int) -> None:
    world = drawn(seed, servers=7)
    view = seen(world, can_migrate=False)
    for model in world.models:
        survey = Survey.of(view, model)
        assert len(survey.best()) + sum(survey.rejected.values()) == len(world.servers)
        too_large = [s for s in world.servers if not s.draining and isinstance(consider(s, (), model), str)]
        assert survey.rejected[TOO_LARGE] == len(too_large)


@often
@given(seeds)
def test_the_same_cluster_gives_the_same_decision_in_whatever_order_it_became_known(seed: int) -> None:
    world = drawn(seed)
    reversed_world = Drawn(world.servers[::-1], world.replicas[::-1], world.models)
    request = wanted(world, seed)
    assert choose(seen(world), request) == choose(seen(reversed_world), request)


@often
@given(seeds)
def test_no_device_and_no_dram_is_ever_given_more_than_it_has(seed: int) -> None:
    world = drawn(seed, servers=4)
    view, request = seen(world), wanted(world, seed)
    for candidate in choose(view, request).candidates:
        after = carried_out(world, request.model, candidate)
        for server in world.servers:
            assert is_kept(server, [one for one in after if one.server == server.name])


@often
@given(seeds)
def test_nobody_goes_who_is_busy_or_pinned_and_only_the_busy_move(seed: int) -> None:
    world = drawn(seed, servers=4)
    by_id = {one.id: one for one in world.replicas}
    request = wanted(world, seed)
    for candidate in choose(seen(world), request).candidates:
        gone = [*candidate.evict, *(victim for move in candidate.moves for victim in move.evict)]
        assert all(by_id[victim].is_idle for victim in gone)
        assert not any(by_id[victim].pinned and by_id[victim].model != request.model.name for victim in gone)
        assert all(by_id[move.replica].is_movable for move in candidate.moves)


@often
@example(175)  # to park who is idle takes longer than to move who is not
@given(seeds)
def test_no_single_move_and_nothing_without_a_move_starts_sooner_than_what_is_chosen(seed: int) -> None:
    world = drawn(seed, servers=4)
    view, request = seen(world), wanted(world, seed)
    action = choose(view, request).action
    alone = one_by_one(view, request.model)
    if not isinstance(action, Start) or not alone or not _is_harmless(world, request.model, alone[0]):
        return
    best_s = min((move_s for s in world.servers for move_s in all_moves_s(view, s, request.model)), default=np.inf)
    assert action.candidate.estimate.total_s <= min(best_s, alone[0].estimate.total_s) + 1e-9


@often
@given(seeds, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 16)), max_size=30))
def test_what_was_changed_step_by_step_is_as_if_made_anew(seed: int, steps: list[tuple[int, int]]) -> None:
    world = drawn(seed)
    index, servers, replicas = ViewIndex(), {}, {}
    for kind, number in [*steps, (0, 0)]:
        server, replica = (
            world.servers[number % len(world.servers)],
            (world.replicas or (None,))[number % max(1, len(world.replicas))],
        )
        if kind == 0:
            servers[server.name] = changed(server, number)
            index.put_server(servers[server.name])
        elif kind == 1:
            servers.pop(server.name, None)
            index.drop_server(server.name)
        elif kind == 2 and replica is not None:
            replicas[replica.id] = replace(replica, streams=number % 3, phase=list(Phase)[number % 2])
            index.put_replica(replicas[replica.id])
        elif replica is not None:
            replicas.pop(replica.id, None)
            index.drop_replica(replica.id)
    anew = view_of(servers.values(), replicas.values(), can_migrate=True)
    stepwise = ClusterView(version=0, index=index, can_migrate=True)
    for model in world.models:
        assert choose(stepwise, StartRequest(model=model)) == choose(anew, StartRequest(model=model))


def changed(server: ServerView, number: int) -> ServerView:
    return replace(server, queued_bytes=number, in_dram=frozenset([*server.in_dram, f"/models/{number % 5}"]))


def carried_out(world: Drawn, model: ModelView, candidate: Candidate) -> list[ReplicaView]:
    """All replicas once it has happened."""
    moves = {move.replica: move for move in candidate.moves}
    gone = {*candidate.evict, *(victim for move in candidate.moves for victim in move.evict)}
    starting = {name: move for name, move in moves.items() if move.into is None}
    staying = [one for one in world.replicas if one.id not in gone and one.id not in moves]
    moved = [
        replace(one, server=starting[one.id].to, devices=starting[one.id].devices)
        for one in world.replicas
        if one.id in starting
    ]
    return [*staying, *moved, started(model, candidate)]


def started(model: ModelView, candidate: Candidate) -> ReplicaView:
    return ReplicaView(
        id=ReplicaId("new"),
        model=model.name,
        checkpoint=model.checkpoint,
        checkpoint_bytes=model.checkpoint_bytes,
        device_bytes=model.device_bytes,
        host_bytes=model.host_bytes,
        server=candidate.server,
        phase=Phase.LOADING,
        streams=1,
        max_streams=model.max_streams,
        idle_since_s=0.0,
        definition=NEW,
        devices=candidate.devices,
    )


def _is_harmless(world: Drawn, model: ModelView, candidate: Candidate) -> bool:
    """Neither the model's own nor more important ones go for it."""
    victims = [one for one in world.replicas if one.id in candidate.evict]
    return all(one.model != model.name and one.priority <= model.priority for one in victims)


def all_moves_s(view: ClusterView, server: ServerView, model: ModelView) -> list[float]:
    """Every way to move one replica of a server, by trying them all."""
    here = list(view.on_server(server.name))
    if server.draining or any(one.model == model.name for one in here) or isinstance(consider(server, (), model), str):
        return []
    movable = [one for one in here if one.is_movable and one.priority <= model.priority]
    found: list[float] = []
    for mover in movable:
        outcome = consider(server, [one for one in here if one is not mover], model)
        if not isinstance(outcome, str) and not outcome[0][1]:  # nobody more important goes beside
            base_s = estimate_start(server, model).total_s
            found += [base_s + cost_s for _, cost_s in _destinations_s(view, server, mover)]
    return found


def _destinations_s(view: ClusterView, source: ServerView, one: ReplicaView) -> list[tuple[str, float]]:
    model = one.model_view
    assert model is not None
    base_s = model.migration_s_per_token * one.tokens + model.migration_fixed_s
    found = []
    for server in view.servers:
        beside = list(view.on_server(server.name))
        outcome = consider(server, beside, model)
        fits = not isinstance(consider(server, (), model), str) and not server.draining
        if server.name != source.name and fits and not isinstance(outcome, str) and outcome[0][:2] == (False, False):
            found.append((server.name, base_s + outcome[1].estimate.total_s))
        for twin in beside:
            takes = twin.model == one.model and twin.definition == one.definition and twin.phase is Phase.READY
            if takes and server.name != source.name and twin.streams + one.streams <= twin.max_streams:
                found.append((server.name, base_s))
    return found


def test_a_decision_from_a_view_that_is_over_is_an_error_of_ours() -> None:
    world = drawn(1)
    view = seen(world)
    view.index.version += 1
    with pytest.raises(AssertionError, match="has changed"):
        choose(view, wanted(world, 1))


def test_decisions_are_kept_with_the_views_version() -> None:
    decision: Decision = choose(seen(drawn(3)), wanted(drawn(3), 3))
    assert decision.view_version == 7
