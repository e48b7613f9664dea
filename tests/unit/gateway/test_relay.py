"""One stream's life, with every event driven by hand."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from dataclasses import replace

import pytest

from serverless_triton.scheduler.admission import Exactness, FakeAdmission, Outlook
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity, SchedulerError, StreamLost
from serverless_triton.scheduler.gateway.composer import FINAL, STREAM_ID
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, FakeUpstream, token_response
from serverless_triton.scheduler.gateway.notices import notices, receipt_header
from serverless_triton.scheduler.gateway.request import parse_request
from serverless_triton.scheduler.gateway.settings import RelayLimits
from serverless_triton.scheduler.gateway.tensors import read_outputs
from serverless_triton.scheduler.gateway.upstream import LinkBroke, UpstreamError
from serverless_triton.scheduler.gateway.watchdog import DeadlineExceeded
from serverless_triton.scheduler.identity import ALL, Caller
from serverless_triton.scheduler.log_lines import fields_of
from tests.unit.gateway.samples import flag, infer_request


async def collect(stream):
    return [response async for response in stream.responses()]


def ids_of(responses):
    return [int(n) for response in responses for n in read_outputs(response)["output_ids"].numbers()]


def text_of(responses):
    return b"".join(s for response in responses for s in read_outputs(response)["text_output"].strings()).decode()


def balanced(admission):
    return len(admission.finished) == len(admission.admitted) and not admission.held


async def test_tokens_arrive_as_the_replica_sends_them(relay, upstream, admission, streamed):
    stream = relay.open(streamed)
    async with aclosing(stream.responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        call = await upstream.call(0)
        call.tokens(0, 10)
        response = await first
        assert ids_of([response]) == [10]
        assert response.id == "c1"
        assert response.parameters[STREAM_ID].string_param == stream.id
        assert not response.parameters[FINAL].bool_param
        call.tokens(1, 11, 12, finish_reason="length")
        last = await anext(responses)
        assert text_of([last]) == " 11 12"
        assert last.parameters[FINAL].bool_param
        assert balanced(admission)  # the place is given back before the client has read the end
    assert len(relay.journal) == 0


async def test_upstream_request_asks_for_token_state(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    request = call.request
    assert request.parameters["token_state"].bool_param
    assert request.parameters["attempt"].int64_param == 0
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert not request.outputs
    call.tokens(0, 1, finish_reason="stop")
    await task


@pytest.mark.parametrize("death", range(5))
async def test_each_token_once_whenever_the_replica_dies(relay, admission, streamed, death):
    upstream = FakeUpstream(FakeEngine(count=5, deaths=[death]))
    stream = replace(relay, upstream=upstream).open(streamed)
    responses = await collect(stream)
    assert ids_of(responses) == [0, 1, 2, 3, 4]
    assert text_of(responses) == " 0 1 2 3 4"
    assert [call.attempt for call in upstream.calls] == [0, 1]
    assert upstream.calls[1].resume_token_ids == list(range(death))
    assert upstream.calls[1].address != upstream.calls[0].address
    assert balanced(admission)


async def test_death_reported_by_the_control_loop_resumes_at_once(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    first = await upstream.call(0)
    first.tokens(0, 5, 6)
    await asyncio.sleep(0)
    admission.lose(admission.admitted[0])
    second = await upstream.call(1)
    assert first.severed is not None
    assert second.resume_token_ids == [5, 6]
    second.tokens(2, 7, finish_reason="length")
    assert ids_of(await task) == [5, 6, 7]
    assert balanced(admission)


async def test_connection_that_ends_early_is_a_death(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    (await upstream.call(0)).end()
    (await upstream.call(1)).tokens(0, 1, finish_reason="stop")
    assert ids_of(await task) == [1]


async def test_a_model_unloaded_under_the_stream_is_a_death(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    (await upstream.call(0)).fail("NOT_FOUND", "Request for unknown model: 'm' is not found")
    (await upstream.call(1)).tokens(0, 1, finish_reason="stop")
    assert ids_of(await task) == [1]


async def test_stream_is_lost_after_three_deaths(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    for index in range(3):
        (await upstream.call(index)).fail("UNAVAILABLE", "worker died")
    with pytest.raises(StreamLost, match="worker died"):
        await task
    assert balanced(admission)
    assert len(relay.journal) == 0


@pytest.mark.parametrize(
    ("told", "resumes"),
    [
        ({"definition": "other", "exactness": None}, False),
        ({"definition": "other", "exactness": Exactness(kind="exact", reason="", contract="0")}, True),
        ({"definition": "other", "exactness": Exactness(kind="exact", reason="", contract="1")}, False),
        ({"exactness": Exactness(kind="best_effort", reason="", contract="1")}, True),
    ],
)
async def test_an_answer_goes_on_by_the_same_model_or_the_same_contract_only(relay, upstream, streamed, told, resumes):
    admission = Replaced(exactness=Exactness(kind="exact", reason="", contract="0"), told=told)
    task = asyncio.ensure_future(collect(replace(relay, admission=admission).open(streamed)))
    call = await upstream.call(0)
    call.tokens(0, 1)
    call.fail("UNAVAILABLE", "worker died")
    if resumes:
        (await upstream.call(1)).tokens(1, 2, finish_reason="stop")
        assert ids_of(await task) == [1, 2]
    else:
        with pytest.raises(StreamLost, match=r"worker died\), and the model was replaced by another"):
            await task
    assert balanced(admission)


async def test_a_request_without_an_answer_yet_starts_on_the_model_that_replaced_the_other(relay, upstream, streamed):
    admission = Replaced(told={"definition": "other"})
    task = asyncio.ensure_future(collect(replace(relay, admission=admission).open(streamed)))
    (await upstream.call(0)).fail("UNAVAILABLE", "worker died")
    (await upstream.call(1)).tokens(0, 2, finish_reason="stop")
    assert ids_of(await task) == [2]


@pytest.mark.parametrize(("asked", "admitted"), [("", ""), ("01", "1")])
async def test_a_version_is_named_to_the_control_loop_where_the_client_named_it(
    relay, upstream, catalogue, asked, admitted
):
    request = infer_request(flag("stream"))
    request.model_version = asked
    admission = Versioned()
    stream = replace(relay, admission=admission).open(parse_request(request, catalogue.entry("m")))
    task = asyncio.ensure_future(collect(stream))
    call = await upstream.call(0)
    call.tokens(0, 1, finish_reason="stop")
    await task
    assert admission.asked == [admitted]
    assert call.request.model_version == "7"


class Versioned(FakeAdmission):
    """Every replica runs version 7; hears which versions were `asked` for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    async def admit(self, *args, version="", **kwargs):
        self.asked.append(version)
        place = await super().admit(*args, version=version, **kwargs)
        self.admitted[-1] = replace(place, version="7")
        return self.admitted[-1]


class Replaced(FakeAdmission):
    """Every place after the first is on replicas of which something else is `told`."""

    def __init__(self, *, told, exactness=None):
        super().__init__(exactness=exactness)
        self._told = told

    async def admit(self, *args, **kwargs):
        place = await super().admit(*args, **kwargs)
        if len(self.admitted) > 1:
            place = self.admitted[-1] = replace(place, **self._told)
        return place


async def test_a_client_does_not_hear_where_its_server_was(relay, upstream, streamed, caplog):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    for index in range(3):
        (await upstream.call(index)).sever(LinkBroke("failed to connect to all addresses; ipv4:10.0.0.3:8001"))
    with pytest.raises(StreamLost, match="the connection to its server broke") as caught:
        await task
    assert "10.0.0.3" not in str(caught.value)
    assert "10.0.0.3" in caplog.text  # of those who run it


async def test_stream_without_another_place_says_what_broke_it(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    admission.refuse(NoCapacity("no room"))
    call.fail("UNAVAILABLE", "worker died")
    with pytest.raises(StreamLost, match=r"worker died.*no room"):
        await task
    assert balanced(admission)


async def test_stale_attempt_and_repeated_position_are_dropped_and_counted(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    call.tokens(0, 1)
    call.tokens(0, 9)
    call.send(token_response(attempt=7, first_position=1, output_ids=[9], text="no"))
    call.tokens(1, 2, finish_reason="stop")
    responses = await task
    assert ids_of(responses) == [1, 2]
    assert (
        relay.metrics.registry.get_sample_value("serverless_triton_gateway_dropped_messages_total", {"model": "m"}) == 2
    )


async def test_missing_tokens_make_the_replica_untrustworthy(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    call.tokens(0, 1)
    call.tokens(2, 3)
    second = await upstream.call(1)
    assert second.resume_token_ids == [1]
    second.tokens(1, 2, finish_reason="stop")
    assert ids_of(await task) == [1, 2]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("INVALID_ARGUMENT", "no"),
        ("INTERNAL", "no"),
        ("INTERNAL", "Received RST_STREAM with error code 2"),
        ("INTERNAL", "Socket closed"),
        ("RESOURCE_EXHAUSTED", "no"),
        ("UNKNOWN", "no"),
    ],
)
async def test_what_is_the_clients_fault_or_a_bug_goes_to_the_client(relay, upstream, admission, streamed, code, words):
    stream = relay.open(streamed)
    task = asyncio.ensure_future(collect(stream))
    call = await upstream.call(0)
    call.tokens(0, 1)
    call.fail(code, f"[request id: {stream.id}] {words}")
    with pytest.raises(UpstreamError, match=rf"\[request id: c1\] {words}") as caught:
        await task
    assert caught.value.code == code
    assert len(upstream.calls) == 1
    assert balanced(admission)


async def test_response_without_token_state_is_an_internal_error(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    response = token_response(attempt=0, first_position=0, output_ids=[1], text="x")
    response.outputs[2].name = "other"
    (await upstream.call(0)).send(response)
    with pytest.raises(UpstreamError, match="without token state") as caught:
        await task
    assert caught.value.code == "INTERNAL"
    assert balanced(admission)


@pytest.mark.parametrize("error", [LoadFailed("disk"), AdmissionTimeout("late")])
async def test_refused_admission_reaches_the_client(relay, upstream, admission, streamed, error):
    admission.refuse(error)
    with pytest.raises(type(error)):
        await collect(relay.open(streamed))
    assert not upstream.calls
    assert not admission.admitted


async def test_client_that_leaves_mid_stream_cancels_upstream(relay, upstream, admission, streamed):
    stream = relay.open(streamed)
    responses = stream.responses()
    first = asyncio.ensure_future(anext(responses))
    call = await upstream.call(0)
    call.tokens(0, 1)
    await first
    await responses.aclose()
    assert call.severed is not None
    assert balanced(admission)
    assert len(relay.journal) == 0


async def test_client_that_leaves_while_waiting_for_a_token(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.severed is not None
    assert balanced(admission)


async def test_client_that_leaves_while_the_model_starts(relay, upstream, admission, streamed):
    admission.hold()
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not admission.admitted
    assert not upstream.calls
    assert len(relay.journal) == 0


async def test_silent_replica_is_left(relay, upstream, admission, streamed):
    relay = replace(relay, limits=RelayLimits(inactivity_timeout_s=0.3))
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    first, second = await upstream.call(0), await upstream.call(1)
    assert "silent" in str(first.severed)
    second.tokens(0, 1, finish_reason="stop")
    assert ids_of(await task) == [1]


async def test_nothing_is_read_ahead_of_the_client(relay, upstream, streamed):
    stream = relay.open(streamed)
    async with aclosing(stream.responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        call = await upstream.call(0)
        for position in range(50):
            call.tokens(position, position)
        await first
        await asyncio.sleep(0)
        (journal,) = relay.journal
        assert len(journal.output_ids) == 1


async def test_slow_client_is_no_silence(relay, upstream, streamed):
    # Long enough that a busy machine is not taken for a silent replica while the first token is on its way.
    relay = replace(relay, limits=RelayLimits(inactivity_timeout_s=0.5))
    async with aclosing(relay.open(streamed).responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        call = await upstream.call(0)
        call.tokens(0, 1)
        await first
        await asyncio.sleep(0.7)
        call.tokens(1, 2, finish_reason="stop")
        assert ids_of([await anext(responses)]) == [2]
    assert len(upstream.calls) == 1


async def test_heartbeat_says_nothing_to_the_client(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    call = await upstream.call(0)
    call.tokens(0)
    call.tokens(0, 1, finish_reason="stop")
    assert len(await task) == 1


async def test_the_requests_own_deadline_ends_the_stream_and_cancels_upstream(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(replace(streamed, timeout_s=0.02))))
    call = await upstream.call(0)
    call.tokens(0, 1)
    with pytest.raises(DeadlineExceeded, match=r"longer than the 0\.02 s that it was given") as caught:
        await task
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert isinstance(call.severed, DeadlineExceeded)
    assert len(upstream.calls) == 1
    assert balanced(admission)
    assert len(relay.journal) == 0


async def test_the_deadline_bounds_the_wait_for_a_place(relay, upstream, admission, streamed):
    admission.hold()
    with pytest.raises(AdmissionTimeout):
        await collect(relay.open(replace(streamed, timeout_s=0.01)))
    assert not upstream.calls


async def test_the_deadline_bounds_the_wait_for_another_place(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(replace(streamed, timeout_s=0.05))))
    call = await upstream.call(0)
    admission.hold()
    call.fail("UNAVAILABLE", "worker died")
    with pytest.raises(DeadlineExceeded):
        await task
    assert balanced(admission)


async def test_a_place_that_does_not_come_in_the_gateways_time_is_no_matter_of_the_deadline(
    relay, upstream, admission, streamed
):
    relay = replace(relay, limits=RelayLimits(admission_timeout_s=0.01))
    task = asyncio.ensure_future(collect(relay.open(replace(streamed, timeout_s=60.0))))
    call = await upstream.call(0)
    admission.hold()
    call.fail("UNAVAILABLE", "worker died")
    with pytest.raises(StreamLost, match="worker died"):
        await task


async def test_the_gateways_bound_counts_where_it_is_shorter(relay, streamed):
    relay = replace(relay, limits=RelayLimits(overall_timeout_s=0.01))
    with pytest.raises(DeadlineExceeded, match="than the gateway allows"):
        await collect(relay.open(replace(streamed, timeout_s=60.0)))


async def test_overall_deadline_ends_the_stream(relay, upstream, admission, streamed):
    relay = replace(relay, limits=RelayLimits(overall_timeout_s=0.01))
    with pytest.raises(UpstreamError, match="longer than") as caught:
        await collect(relay.open(streamed))
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert balanced(admission)


async def given_back(admission):
    for _ in range(500):
        if not admission.held:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_deadline_gives_the_place_back_while_the_client_takes_nothing(relay, upstream, admission, streamed):
    stream = relay.open(replace(streamed, timeout_s=0.05))
    async with aclosing(stream.responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        call = await upstream.call(0)
        call.tokens(0, 10)
        await first
        assert admission.held
        assert await given_back(admission)
        assert call.severed is not None
        with pytest.raises(DeadlineExceeded):
            await anext(responses)
    assert balanced(admission)


async def test_a_death_gives_the_place_back_while_the_client_takes_nothing(relay, upstream, admission, streamed):
    stream = relay.open(streamed)
    async with aclosing(stream.responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        (await upstream.call(0)).tokens(0, 10)
        await first
        admission.lose(admission.admitted[0])
        assert await given_back(admission)
        second = asyncio.ensure_future(anext(responses))
        (await upstream.call(1)).tokens(1, 11, finish_reason="stop")
        assert ids_of([await second]) == [11]
    assert balanced(admission)


async def test_a_replica_hears_the_deadline_by_the_wall_clock_rounded_up(relay, upstream, streamed):
    limits = RelayLimits(overall_timeout_s=60.0)
    task = asyncio.ensure_future(collect(replace(relay, limits=limits, wall_clock=lambda: 1000.5).open(streamed)))
    call = await upstream.call(0)
    assert call.request.parameters["deadline_unix_s"].int64_param in (1060, 1061)  # loop time goes on
    call.tokens(0, 1, finish_reason="stop")
    await task


async def test_a_stream_without_a_deadline_tells_none(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(replace(relay, limits=RelayLimits(overall_timeout_s=None)).open(streamed)))
    call = await upstream.call(0)
    assert "deadline_unix_s" not in call.request.parameters
    call.tokens(0, 1, finish_reason="stop")
    await task


async def test_every_wait_is_claimed_for_its_caller_with_the_requests_priority(relay, admission, streamed):
    relay = replace(relay, upstream=FakeUpstream(FakeEngine(count=3, deaths=[1])))
    wanted = replace(streamed, priority=3, returns_queue_position=True)
    await collect(relay.open(wanted, Caller(tenant="t", models=ALL)))
    assert admission.claims == [("t", 3)] * 3  # the outlook, the first place, the one after the death


STARTS_SOON = Outlook(model="m", waiting=2, queue_position=3, estimated_start_s=1.5)


async def test_a_streamed_wait_is_told_before_it_begins(relay, admission, streamed):
    admission.outlooks["m"] = STARTS_SOON
    admission.hold()
    async with aclosing(relay.open(replace(streamed, returns_queue_position=True)).responses()) as responses:
        told = await anext(responses)
    assert (told.id, told.model_name, list(told.outputs)) == ("c1", "m", [])
    assert notices(told) == {"queue_position": 3, "estimated_start_s": 1.5}
    assert not told.parameters[FINAL].bool_param
    assert not admission.admitted
    assert len(relay.journal) == 0


async def test_what_nothing_says_is_not_told(relay, upstream, admission, streamed):
    admission.outlooks["m"] = replace(STARTS_SOON, estimated_start_s=None)
    async with aclosing(relay.open(replace(streamed, returns_queue_position=True)).responses()) as responses:
        assert notices(await anext(responses)) == {"queue_position": 3}


async def test_a_whole_text_says_how_its_wait_looked(relay, upstream, admission, streamed):
    admission.outlooks["m"] = STARTS_SOON
    task = asyncio.ensure_future(collect(relay.open(replace(streamed, returns_queue_position=True, whole=True))))
    (await upstream.call(0)).tokens(0, 1, finish_reason="stop")
    (response,) = await task
    assert notices(response) == {"queue_position": 3, "estimated_start_s": 1.5}
    assert text_of([response]) == " 1"


async def test_nobody_is_told_who_did_not_ask(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    (await upstream.call(0)).tokens(0, 1, finish_reason="stop")
    assert [notices(response) for response in await task] == [{}]


async def test_every_start_leaves_a_receipt(relay, admission, streamed):
    upstream = FakeUpstream(FakeEngine(count=3, deaths=[2]))
    relay = replace(relay, upstream=upstream)
    stream = relay.open(streamed)
    await collect(stream)
    assert [(r.kind, r.server) for r in relay.receipts.of(stream.id)] == [("warm", "server-0"), ("resumed", "server-1")]


async def test_receipts_come_with_the_first_response_after_each_start_if_they_were_asked_for(relay, streamed):
    relay = replace(relay, upstream=FakeUpstream(FakeEngine(count=4, deaths=[2])))
    responses = await collect(relay.open(replace(streamed, returns_receipt=True)))
    told = [json.loads(notices(response).get("receipt", "[]")) for response in responses]
    assert [[one["kind"] for one in receipts] for receipts in told] == [["warm"], [], ["resumed"], []]


async def test_a_whole_text_comes_with_all_its_receipts(relay, streamed):
    relay = replace(relay, upstream=FakeUpstream(FakeEngine(count=4, deaths=[1, 2])))
    (response,) = await collect(relay.open(replace(streamed, returns_receipt=True, whole=True)))
    told = json.loads(notices(response)["receipt"])
    assert [one["kind"] for one in told] == ["warm", "resumed", "resumed"]
    assert "Triton-Receipt" in receipt_header(response)
    assert len(receipt_header(response)["Triton-Receipt"]) < 4096


async def test_no_receipt_comes_unasked(relay, streamed):
    relay = replace(relay, upstream=FakeUpstream(FakeEngine()))
    responses = await collect(relay.open(streamed))
    assert all(notices(response) == receipt_header(response) == {} for response in responses)


async def test_a_receipt_is_its_callers(relay, streamed):
    relay = replace(relay, upstream=FakeUpstream(FakeEngine()))
    stream = relay.open(streamed, Caller(tenant="t", models=ALL))
    await collect(stream)
    assert len(relay.receipts.of(stream.id, "t")) == 1
    assert relay.receipts.of(stream.id, "other") == ()


async def test_statistics_count_what_clients_saw(relay, upstream, admission, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    (await upstream.call(0)).tokens(0, 1, finish_reason="stop")
    await task
    admission.refuse(LoadFailed("disk"))
    with pytest.raises(LoadFailed):
        await collect(relay.open(streamed))
    report = relay.statistics.report("m", "1")
    assert (report.inference_count, report.inference_stats.success.count, report.inference_stats.fail.count) == (
        1,
        1,
        1,
    )
    assert report.last_inference > 0


async def test_a_receipt_tells_what_the_engine_promised(relay, streamed):
    promise = Exactness(kind="best_effort", reason="mode is fast", contract="0")
    upstream = FakeUpstream(FakeEngine(count=3))
    relay = replace(relay, upstream=upstream, admission=FakeAdmission(exactness=promise))
    stream = relay.open(streamed)
    await collect(stream)
    assert [receipt.exactness for receipt in relay.receipts.of(stream.id)] == [promise]


async def test_tokens_of_a_stream_that_its_client_left_are_its_callers_to_pay(relay, upstream, streamed):
    paid = []
    caller = Caller(tenant="t", models=ALL)
    stream = replace(relay, spend=lambda *what: paid.append(what)).open(streamed, caller)
    async with aclosing(stream.responses()) as responses:
        first = asyncio.ensure_future(anext(responses))
        (await upstream.call(0)).tokens(0, 10, 11)
        await first
        assert paid == []
    assert paid == [(caller, 3)]  # one of the prompt


async def test_a_stream_that_got_no_place_costs_nothing(relay, admission, streamed):
    paid = []
    admission.refuse(NoCapacity("full"))
    with pytest.raises(NoCapacity):
        await collect(replace(relay, spend=lambda *what: paid.append(what)).open(streamed))
    assert [tokens for _, tokens in paid] == [0]


async def test_each_stream_ends_with_one_line_that_holds_neither_prompt_nor_whole_id(
    relay, upstream, catalogue, caplog
):
    caplog.set_level(logging.DEBUG)
    stream = relay.open(parse_request(infer_request(flag("stream"), text=b"xyzzy"), catalogue.entry("m")))
    task = asyncio.ensure_future(collect(stream))
    (await upstream.call(0)).tokens(0, 1, 2, finish_reason="stop")
    await task
    (fields,) = (fields_of(record) for record in caplog.records if record.levelno == logging.INFO)
    assert fields["event"] == "stream_ended"
    assert fields["request_id"] == stream.id[:8]
    assert (fields["model"], fields["server"], fields["outcome"], fields["tokens"]) == ("m", "server-0", "stop", 2)
    assert stream.id not in caplog.text
    assert "xyzzy" not in caplog.text


@pytest.mark.parametrize(("code", "attempts"), [("INTERNAL", 1), ("UNAVAILABLE", 3)])
async def test_a_stream_that_failed_says_by_which_code(relay, upstream, streamed, caplog, code, attempts):
    caplog.set_level(logging.INFO)
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    for index in range(attempts):
        (await upstream.call(index)).fail(code, "broke")
    with pytest.raises(SchedulerError):
        await task
    fields = fields_of(caplog.records[-1])
    assert (fields["event"], fields["outcome"], fields["attempts"]) == ("stream_ended", code, attempts)


async def test_what_is_logged_of_a_stream_names_its_tenant(relay, upstream, streamed, caplog):
    caplog.set_level(logging.INFO)
    caller = Caller(tenant="research", models=ALL, key="batch")
    task = asyncio.ensure_future(collect(relay.open(streamed, caller)))
    (await upstream.call(0)).fail("UNAVAILABLE", "broke")
    (await upstream.call(1)).tokens(0, 1, finish_reason="stop")
    await task
    lines = [fields_of(record) for record in caplog.records]
    assert [(line["event"], line["tenant"]) for line in lines] == [
        ("stream_lost_replica", "research"), ("stream_ended", "research"),
    ]  # fmt: skip


async def test_a_stream_whose_client_leaves_was_cancelled(relay, upstream, streamed, caplog):
    caplog.set_level(logging.INFO)
    responses = relay.open(streamed).responses()
    reading = asyncio.ensure_future(anext(responses))
    (await upstream.call(0)).tokens(0, 1)
    await reading
    await responses.aclose()
    assert fields_of(caplog.records[-1])["outcome"] == "cancelled"
