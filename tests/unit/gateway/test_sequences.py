"""Which place a sequence's requests get, in which order, and when it is given back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from serverless_triton.scheduler.admission import FakeAdmission, StreamId
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.errors import AdmissionTimeout, InvalidRequest, NoCapacity, StreamLost
from serverless_triton.scheduler.gateway.sequences import Sequences, SequenceStep, read_step
from tests.unit.gateway.samples import add_model, infer_request

STATEFUL = 'backend: "python" sequence_batching { max_sequence_idle_microseconds: 2500000 }'
LONG_S = 60.0


def step(*, starts=False, ends=False, idle_s=LONG_S, number=5):
    return SequenceStep(model="m", id=number, starts=starts, ends=ends, idle_s=idle_s)


class Gate:
    """Sequences over fake servers; each request asks as a stream of its own."""

    def __init__(self):
        self.admission = FakeAdmission()
        self.sequences = Sequences(self.admission)
        self.number = 0

    @asynccontextmanager
    async def turn(self, wanted, *, tenant="", timeout_s=1.0):
        self.number += 1
        stream = StreamId(f"r{self.number}")
        async with self.sequences.turn(
            wanted, tenant, timeout_s, lambda: self.admission.admit(stream, wanted.model, timeout_s=1.0)
        ) as turn:
            yield turn

    async def ask(self, wanted, **options):
        async with self.turn(wanted, **options) as turn:
            return turn.assignment


@pytest.fixture
def gate():
    return Gate()


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_requests_of_a_sequence_share_one_place(gate):
    first = await gate.ask(step(starts=True))
    assert (await gate.ask(step())).replica == first.replica
    assert gate.admission.held == gate.admission.admitted == [first]


async def test_its_last_request_gives_the_place_back(gate):
    await gate.ask(step(starts=True))
    await gate.ask(step(ends=True))
    assert gate.admission.held == []
    with pytest.raises(InvalidRequest, match="must specify the START flag"):
        await gate.ask(step())


async def test_a_sequence_of_one_request_holds_nothing(gate):
    await gate.ask(step(starts=True, ends=True))
    assert gate.admission.held == []


async def test_one_that_was_not_begun_is_refused_and_asks_for_no_place(gate):
    with pytest.raises(InvalidRequest, match="sequence 5 to model 'm' must specify the START flag"):
        await gate.ask(step())
    assert gate.admission.admitted == []


async def test_sequences_of_other_ids_have_places_of_their_own(gate):
    await gate.ask(step(starts=True))
    await gate.ask(step(starts=True, number=6))
    assert len(gate.admission.held) == 2


async def test_an_idle_one_gives_its_place_back(gate):
    await gate.ask(step(starts=True, idle_s=0.01))
    await asyncio.sleep(0.05)
    assert gate.admission.held == []
    with pytest.raises(InvalidRequest, match="START"):
        await gate.ask(step())


async def test_one_whose_request_runs_is_not_idle(gate):
    await gate.ask(step(starts=True, idle_s=0.01))
    async with gate.turn(step(idle_s=0.01)):
        await asyncio.sleep(0.05)
        assert len(gate.admission.held) == 1


async def test_requests_take_their_turns_in_the_order_in_which_they_came(gate):
    order, going = [], asyncio.Event()

    async def ask(name, wanted):
        async with gate.turn(wanted):
            order.append(f"{name} begins")
            await going.wait()
            order.append(f"{name} ends")

    asks = [asyncio.ensure_future(ask(name, step(starts=name == "a", ends=name == "c"))) for name in ("a", "b", "c")]
    await settle()
    assert order == ["a begins"]
    going.set()
    await asyncio.gather(*asks)
    assert order == [f"{name} {part}" for name in "abc" for part in ("begins", "ends")]


async def test_a_request_that_gives_up_waiting_lets_the_next_one_wait_on(gate):
    async with gate.turn(step(starts=True)):
        given_up = asyncio.ensure_future(gate.ask(step()))
        patient = asyncio.ensure_future(gate.ask(step(), timeout_s=60.0))
        await settle()
        given_up.cancel()
        await settle()
        assert not patient.done()
    assert (await patient).replica == gate.admission.admitted[0].replica


async def test_a_wait_for_a_turn_is_bounded(gate):
    async with gate.turn(step(starts=True)):
        with pytest.raises(AdmissionTimeout, match="had requests before this one"):
            await gate.ask(step(), timeout_s=0.01)


async def test_a_turn_that_nobody_took_leaves_nothing_behind(gate):
    async with gate.turn(step(starts=True, ends=True)):
        waiting = asyncio.ensure_future(gate.ask(step()))
        await settle()
        waiting.cancel()
        await settle()
    await settle()
    assert gate.sequences._open == {}


async def test_a_sequence_whose_beginning_failed_was_not_begun(gate):
    gate.admission.refuse(NoCapacity("full"))
    with pytest.raises(NoCapacity):
        await gate.ask(step(starts=True))
    with pytest.raises(InvalidRequest, match="START"):
        await gate.ask(step())


async def test_one_whose_replica_is_gone_is_lost_and_may_begin_anew(gate):
    gate.admission.lose(await gate.ask(step(starts=True)), "the server went down")
    with pytest.raises(StreamLost, match="the server went down"):
        await gate.ask(step())
    assert gate.admission.held == []
    await gate.ask(step(starts=True))
    assert len(gate.admission.held) == 1


async def test_a_broken_replica_ends_its_sequence(gate):
    async with gate.turn(step(starts=True)) as turn:
        turn.broken = True
    assert gate.admission.broken == [turn.assignment.replica]
    assert gate.admission.held == []


async def test_nobody_continues_or_takes_over_another_tenants_sequence(gate):
    await gate.ask(step(starts=True), tenant="a")
    for wanted in (step(), step(starts=True), step(ends=True)):
        with pytest.raises(InvalidRequest, match="in use"):
            await gate.ask(wanted, tenant="b")
    assert len(gate.admission.held) == 1


async def test_closing_gives_every_place_back(gate):
    await gate.ask(step(starts=True))
    gate.sequences.close()
    assert gate.admission.held == []


def asked(tmp_path, config, **parameters):
    add_model(tmp_path, "m", config)
    request = infer_request()
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return read_step(request, Catalogue(tmp_path).entry("m"))


@pytest.mark.parametrize("number", [7, "seven"])
def test_what_a_request_says_of_its_sequence_is_read(tmp_path, number):
    read = asked(tmp_path, STATEFUL, sequence_id=number, sequence_start=True)
    assert read == SequenceStep(model="m", id=number, starts=True, ends=False, idle_s=2.5)


@pytest.mark.parametrize("number", [0, ""])
def test_without_an_id_there_is_no_sequence(tmp_path, number):
    assert asked(tmp_path, STATEFUL, sequence_id=number, sequence_start=True) is None


def test_a_model_without_state_knows_no_sequences(tmp_path):
    assert asked(tmp_path, 'backend: "python"', sequence_id=7, sequence_start=True) is None


def test_tritons_own_idle_time_counts_where_the_model_names_none(tmp_path):
    assert asked(tmp_path, 'backend: "python" sequence_batching { }', sequence_id=7).idle_s == 1.0


def test_a_flag_that_is_none_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="'sequence_start' parameter, expected bool_param"):
        asked(tmp_path, STATEFUL, sequence_id=7, sequence_start=1)
