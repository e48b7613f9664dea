"""Other backends' models under the control loop: Triton's load and unload are all of their start and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.calibration import Calibration
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.errors import InvalidRequest, LoadFailed
from serverless_triton.scheduler.estimator import estimate_start
from serverless_triton.scheduler.foreign import DEFAULT_MAX_STREAMS, ForeignModel, parse_foreign
from serverless_triton.scheduler.learned import ASSUMED_LOAD_S, LearnedModels
from serverless_triton.scheduler.leftovers import ensembles_first, unload_leftovers
from serverless_triton.scheduler.model_orders import model_orders
from serverless_triton.scheduler.policy import Refuse, Start, StartRequest, Wait, choose
from serverless_triton.scheduler.view import ModelView
from serverless_triton.scheduler.waiting_room import ModelOrder
from tests.unit.gateway.samples import CONFIG, add_model
from tests.unit.scheduler.worlds import GB, asked, model, replica, server, settle, view, world


def foreign(name: str = "f", *, host_bytes: int = GB, device_bytes: int = 0, load_s: float = 2.0) -> ModelView:
    return ModelView(
        name=name,
        checkpoint="",
        checkpoint_bytes=0,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        max_streams=2,
        foreign=True,
        load_s=load_s,
    )


def config(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def said(**parameters: str) -> model_config_pb2.ModelConfig:
    texts = (f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items())
    return config("\n".join(texts))


# What its configuration says


def test_memory_and_places_are_declared_in_the_configuration() -> None:
    declared = parse_foreign(said(device_memory_bytes="7", host_memory_bytes="8", max_streams="3"))
    assert declared == ForeignModel(device_bytes=7, host_bytes=8, max_streams=3)


def test_what_is_not_declared_is_unknown() -> None:
    assert parse_foreign(said()) == ForeignModel(device_bytes=None, host_bytes=None, max_streams=DEFAULT_MAX_STREAMS)


@pytest.mark.parametrize(
    "parameters", [{"host_memory_bytes": "-1"}, {"device_memory_bytes": "1.5"}, {"max_streams": "0"}]
)
def test_a_declaration_that_is_no_number_is_refused_by_name(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        parse_foreign(said(**parameters))


# Where it fits


def test_on_a_processor_its_memory_counts_with_the_devices() -> None:
    full = view([server(device_memory_bytes=2 * GB)], [replica("r", "s0", model("a", device_bytes=GB), streams=1)])
    assert isinstance(choose(full, StartRequest(model=foreign(host_bytes=GB))).action, Start)
    assert isinstance(choose(full, StartRequest(model=foreign(host_bytes=GB + 1))).action, Wait)


def test_on_a_gpu_its_memory_counts_with_dram_beside_the_checkpoints() -> None:
    gpu = server(device_memory_bytes=4 * GB, dram_bytes=2 * GB, device_holds_weights=True)
    full = view([gpu], [replica("r", "s0", model("a", size=GB, device_bytes=GB), streams=1)])
    assert isinstance(choose(full, StartRequest(model=foreign(host_bytes=GB, device_bytes=GB))).action, Start)
    assert isinstance(choose(full, StartRequest(model=foreign(host_bytes=GB + 1))).action, Wait)
    assert isinstance(choose(full, StartRequest(model=foreign(host_bytes=0, device_bytes=2 * GB + 1))).action, Wait)


def test_one_that_fits_nowhere_is_refused_with_what_it_needs() -> None:
    action = choose(view([server()]), StartRequest(model=foreign(host_bytes=3 * GB))).action
    assert isinstance(action, Refuse)
    assert f"{3 * GB} of the host's" in action.reason


def test_either_kind_makes_room_for_the_other() -> None:
    ours, theirs = model("a", device_bytes=2 * GB), foreign(host_bytes=2 * GB)
    for sleeping, wanted in ((ours, theirs), (theirs, ours)):
        idle = view([server()], [replica("r", "s0", sleeping)])
        action = choose(idle, StartRequest(model=wanted)).action
        assert isinstance(action, Start)
        assert action.candidate.evict == ("r",)


def test_its_start_is_predicted_by_how_long_its_loads_took() -> None:
    estimate = estimate_start(server(queued_bytes=9 * GB), foreign(load_s=3.5))
    assert (estimate.tier, estimate.total_s) == ("triton", 3.5)


# What is learned


def test_loads_teach_how_long_they_take() -> None:
    learned, declared = LearnedModels(), ForeignModel(device_bytes=None, host_bytes=5)
    first = learned.view("f", declared)
    assert first.load_s == ASSUMED_LOAD_S
    assert learned.loaded(first, 1.0, None).load_s == 1.0
    learned.loaded(first, 2.0, None)
    assert 1.0 < learned.view("f", declared).load_s < 2.0


def test_what_is_declared_is_not_learned() -> None:
    learned, declared = LearnedModels(), ForeignModel(device_bytes=None, host_bytes=5)
    assert learned.loaded(learned.view("f", declared), 1.0, 700).host_bytes == 5
    assert learned.view("f", declared).host_bytes == 5


def test_what_is_not_declared_is_learned_from_the_load() -> None:
    learned, declared = LearnedModels(), ForeignModel(device_bytes=None, host_bytes=None)
    first = learned.view("f", declared)
    assert first.host_bytes == 0
    assert learned.loaded(first, 1.0, 700).host_bytes == 700
    assert learned.view("f", declared).host_bytes == 700


def test_a_load_that_grew_nothing_teaches_nothing() -> None:
    learned, declared = LearnedModels(), ForeignModel(device_bytes=None, host_bytes=None)
    learned.loaded(learned.view("f", declared), 1.0, 700)
    assert learned.loaded(learned.view("f", declared), 1.0, 0).host_bytes == 700


# Its life


async def test_a_start_is_tritons_load_alone() -> None:
    w = world("s0", models=(foreign(),))
    assignment = await asked(w, "r1", "f")
    assert w.effects.calls == [("load_foreign", "s0", "f")]
    assert assignment.start is not None
    assert assignment.start.tier == "triton"
    assert [span.name for span in assignment.start.spans] == ["schedule", "make_room", "triton.load"]


async def test_an_eviction_is_tritons_unload_and_the_next_start_waits_for_it() -> None:
    w = world("s0", models=(foreign(host_bytes=2 * GB), model("a", device_bytes=2 * GB)), automatic=False)
    first = asked(w, "r1", "f")
    await settle()
    w.effects.resolve("load_foreign", "s0", "f")
    w.loop.finish(await first)
    second = asked(w, "r2", "a")
    await settle()
    assert w.effects.calls[1:] == [("end_foreign", "s0", "f")]
    w.effects.resolve("end_foreign", "s0", "f")
    await settle()
    assert ("start_engine", "s0", "a") in w.effects.calls
    second.cancel()


async def test_a_release_ends_when_the_model_is_gone() -> None:
    w = world("s0", models=(foreign(),))
    w.loop.finish(await asked(w, "r1", "f"))
    await w.loop.release("f", timeout_s=1.0)
    assert w.effects.calls[-1] == ("end_foreign", "s0", "f")
    assert w.loop.ready_models() == frozenset()


async def test_what_tritons_load_says_reaches_the_client() -> None:
    w = world("s0", models=(foreign(),), automatic=False)
    waiting = asked(w, "r1", "f")
    await settle()
    w.effects.resolve("load_foreign", "s0", "f", EffectFailed("INTERNAL", "no such backend"))
    with pytest.raises(LoadFailed, match="no such backend"):
        await waiting


async def test_a_broken_one_takes_no_more_streams_and_ends_with_its_last() -> None:
    w = world("s0", models=(foreign(),))
    first, other = await asked(w, "r1", "f"), await asked(w, "r2", "f")
    w.loop.finish(first, broken=True)
    waiting = asked(w, "r3", "f")
    await settle()
    assert not waiting.done()
    w.loop.finish(other)
    assert (await waiting).replica != first.replica
    assert w.effects.calls == [("load_foreign", "s0", "f"), ("end_foreign", "s0", "f"), ("load_foreign", "s0", "f")]


async def test_a_server_that_is_met_is_rid_of_what_nobody_accounts_for() -> None:
    w = world("s0", models=(foreign(), model("a")))
    w.effects.loaded, w.effects.generating = frozenset({"f", "a"}), frozenset({"a"})
    await unload_leftovers(w.effects, ServerName("s0"))
    assert [call for call in w.effects.calls if call[0] == "end_foreign"] == [("end_foreign", "s0", "f")]


async def test_what_has_left_the_repository_meanwhile_goes_too_unless_it_has_an_agent() -> None:
    w = world("s0")
    w.effects.loaded, w.effects.generating = frozenset({"gone", "gone-of-ours"}), frozenset({"gone-of-ours"})
    await unload_leftovers(w.effects, ServerName("s0"))
    assert [call for call in w.effects.calls if call[0] == "end_foreign"] == [("end_foreign", "s0", "gone")]


@pytest.mark.parametrize(
    ("members", "order"),
    [
        ({"a": (), "z": ("a",)}, ["z", "a"]),
        ({"a": ("m",), "m": ("z",), "z": ()}, ["a", "m", "z"]),
        ({"b": (), "a": ()}, ["a", "b"]),
        ({"a": ("b",), "b": ("a",), "c": ("a",)}, ["c", "a", "b"]),
        ({"a": ("a",), "b": ("nowhere",)}, ["a", "b"]),
    ],
)
def test_ensembles_end_before_their_members(members: dict[str, tuple[str, ...]], order: list[str]) -> None:
    assert ensembles_first(members) == order


async def test_what_a_load_took_of_memory_is_measured_and_counted() -> None:
    undeclared = replace(foreign(host_bytes=0), measured=True)
    w = world("s0", models=(undeclared,))
    w.effects.measurements = [500, 500 + GB]
    await asked(w, "r1", "f")
    assert [effect for effect, _, _ in w.effects.calls] == ["measure", "load_foreign", "measure"]
    assert {subject for effect, _, subject in w.effects.calls if effect == "measure"} == {"f"}
    (running,) = w.loop.cluster.view().replicas
    assert running.host_bytes == GB


async def test_idle_replicas_go_where_a_load_took_more_than_was_known_of() -> None:
    undeclared = replace(foreign(host_bytes=0), measured=True)
    w = world("s0", models=(undeclared, model("a"), model("b", device_bytes=GB // 2)))
    for name in ("a", "b"):
        w.loop.finish(await asked(w, f"of-{name}", name))
        w.clock.now_s += 1.0
    w.effects.measurements = [0, GB]
    await asked(w, "r1", "f")
    assert sorted(running.model for running in w.loop.cluster.view().replicas) == ["b", "f"]


# When its configuration changes: Triton has one model of a name, so the older one cannot stay beside the newer


def test_an_older_replica_that_nobody_uses_goes_before_the_newer_is_loaded_on_its_server() -> None:
    older, newer = replace(foreign(), definition="1"), replace(foreign(), definition="2")
    there = view([server("a")], [replica("f-1", of=older, on="a")])
    action = choose(there, StartRequest(model=newer, avoid=frozenset({ReplicaId("f-1")}))).action
    assert isinstance(action, Start)
    assert action.candidate.evict == ("f-1",)


def test_an_older_replica_in_use_is_waited_for() -> None:
    older, newer = replace(foreign(), definition="1"), replace(foreign(), definition="2")
    there = view([server("a")], [replica("f-1", of=older, on="a", streams=1)])
    assert isinstance(choose(there, StartRequest(model=newer, avoid=frozenset({ReplicaId("f-1")}))).action, Wait)


# Ensembles


def repository(root: Path, **configs: str) -> Callable[[str], ModelOrder]:
    for name, text in configs.items():
        add_model(root, name, text)
    return model_orders(Catalogue(root), LearnedModels(), Calibration())


def steps(*members: str) -> str:
    return (
        'platform: "ensemble" ensemble_scheduling {' + "".join(f'step {{ model_name: "{m}" }}' for m in members) + "}"
    )


def takes(host_bytes: int) -> str:
    return f'backend: "python" parameters {{ key: "host_memory_bytes" value {{ string_value: "{host_bytes}" }} }}'


def test_an_ensemble_takes_what_its_members_take_each_once(tmp_path: Path) -> None:
    order_of = repository(tmp_path, a=takes(1), b=takes(20), e=steps("a", "b", "a"))
    view = order_of("e").view
    assert (view.host_bytes, view.measured, view.models) == (21, False, ("e", "a", "b"))


def test_an_ensemble_may_declare_what_all_of_it_takes(tmp_path: Path) -> None:
    said = steps("a") + takes(500).removeprefix('backend: "python"')
    assert repository(tmp_path, a=takes(1), e=said)("e").view.host_bytes == 500


def test_an_ensemble_with_a_member_that_says_nothing_is_measured_as_a_whole(tmp_path: Path) -> None:
    assert repository(tmp_path, a='backend: "python"', b=takes(20), e=steps("a", "b"))("e").view.measured


def test_an_ensemble_in_an_ensemble_loads_all_of_them(tmp_path: Path) -> None:
    order_of = repository(tmp_path, a=takes(1), inner=steps("a"), outer=steps("inner"))
    assert order_of("outer").view.models == ("outer", "inner", "a")


@pytest.mark.parametrize(
    ("member", "words"),
    [("nowhere", "'nowhere' is not found"), ("text", "'text' generates text"), ("e", "nested in itself")],
)
def test_an_ensemble_that_cannot_be_is_refused_with_the_reason(tmp_path: Path, member: str, words: str) -> None:
    order_of = repository(tmp_path, e=steps(member), text=CONFIG)
    with pytest.raises(InvalidRequest, match=words):
        order_of("e")


async def test_an_ensemble_goes_with_its_members_but_not_with_those_that_others_need() -> None:
    ensemble = replace(foreign("e", host_bytes=0), members=("a", "b"))
    w = world("s0", models=(ensemble, foreign("a", host_bytes=0)))
    for name in ("e", "a"):
        w.loop.finish(await asked(w, f"of-{name}", name))
    await w.loop.release("e", timeout_s=1.0)
    assert w.effects.calls[2:] == [("end_foreign", "s0", "e"), ("end_foreign", "s0", "b")]


async def test_a_member_that_ends_stays_loaded_for_its_ensemble() -> None:
    ensemble = replace(foreign("e", host_bytes=0), members=("a", "b"))
    w = world("s0", models=(ensemble, foreign("a", host_bytes=0)))
    for name in ("e", "a"):
        w.loop.finish(await asked(w, f"of-{name}", name))
    await w.loop.release("a", timeout_s=1.0)
    assert w.effects.calls[2:] == []
    await w.loop.release("e", timeout_s=1.0)
    assert [subject for _, _, subject in w.effects.calls[2:]] == ["e", "a", "b"]


async def test_of_what_is_left_over_ensembles_end_before_their_members() -> None:
    w = world("s0")
    w.effects.loaded, w.effects.ensembles = frozenset({"a", "e"}), {"e": ("a",)}
    await unload_leftovers(w.effects, ServerName("s0"))
    assert [subject for effect, _, subject in w.effects.calls if effect == "end_foreign"] == ["e", "a"]


def test_an_ensemble_whose_member_changes_is_another(tmp_path: Path) -> None:
    order_of = repository(tmp_path, a=takes(1), e=steps("a"))
    before = order_of("e").view.definition
    (tmp_path / "a" / "config.pbtxt").write_text(takes(22))
    assert order_of("e").view.definition != before
