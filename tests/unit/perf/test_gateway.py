"""What clients of the gateway benchmark heard becomes figures, and rounds become claims and tables."""

import os

import pytest
from tritonclient.grpc import service_pb2 as pb

from perf.claims import CLAIMS, judge
from perf.formulas import PairedDifference
from perf.gateway import rows
from perf.gateway.listener import Heard, StreamFailed, Task, figures_of, latency_s, outcome, steady_rate
from perf.gateway.repeater import script
from perf.gateway.report import markdown
from perf.gateway.watch import watched
from perf.results import Measurement, Round
from serverless_triton.scheduler.gateway.composer import read_update
from tests.unit.perf.runs import run_of

SECOND_NS = 10**9


def task_of(tokens: int, *, tells_time: bool = False) -> Task:
    return Task(address="a:1", model="m", streams=1, tokens=tokens, connections=1, tells_time=tells_time)


def heard_of(messages: list[bytes], every_ns: int = SECOND_NS) -> Heard:
    times_ns = [every_ns * (n + 1) for n in range(len(messages))]
    return Heard(asked_ns=every_ns // 2, times_ns=times_ns, messages=messages)


def test_a_token_that_tells_the_time_says_how_long_it_was_on_its_way():
    assert latency_s(5_000_000, 5_000_750_000) == pytest.approx(0.00075)


def test_the_clock_of_such_tokens_may_begin_again():
    heard_ns = (2**31 + 100) * 1000
    assert latency_s(2**31 - 400, heard_ns) == pytest.approx(0.0005)


def test_messages_count_while_all_streams_run():
    first, late = [n * SECOND_NS for n in range(11)], [(5 + n) * SECOND_NS for n in range(11)]
    assert steady_rate([first, late]) == pytest.approx(2.0)


def test_streams_one_after_the_other_count_from_the_first_message_to_the_last():
    assert steady_rate([[SECOND_NS, 2 * SECOND_NS], [4 * SECOND_NS, 5 * SECOND_NS]]) == pytest.approx(0.75)


def test_messages_and_their_tokens_are_counted():
    found = outcome([heard_of(script(20, 8))], task_of(20))
    assert (found.messages, found.tokens, found.first_token_s) == (3, 20, [0.5])
    assert figures_of(found)["message_tokens"] == pytest.approx(20 / 3)


def test_a_stream_that_lacks_tokens_is_an_error():
    with pytest.raises(StreamFailed, match="16 tokens came of 20"):
        outcome([heard_of(script(20, 8)[:2])], task_of(20))


def test_a_servers_own_error_is_told():
    refusal = pb.ModelStreamInferResponse(error_message="no such model").SerializeToString()
    with pytest.raises(StreamFailed, match="no such model"):
        outcome([heard_of([refusal])], task_of(1))


def test_a_repeaters_messages_are_what_the_gateway_reads_of_a_replica():
    updates = [read_update(pb.ModelStreamInferResponse.FromString(m).infer_response) for m in script(20, 8)]
    assert [(u.first_position, len(u.output_ids), u.finish_reason) for u in updates if u is not None] == [
        (0, 8, None),
        (8, 8, None),
        (16, 4, "length"),
    ]


def test_a_watched_process_shows_its_time_and_its_memory():
    with watched(os.getpid()) as usage:
        sum(n * n for n in range(200_000))
    assert usage.cpu_s > 0
    assert usage.most_bytes >= usage.bytes_before > 2**20


def round_with(number: int, **figures: dict[str, float]) -> Round:
    measurements = {name: Measurement(figures=values) for name, values in figures.items()}
    return Round(number=number, order=tuple(figures), measurements=measurements)


def paced(number: int, direct_s: float, gateway_s: float) -> Round:
    return round_with(
        number,
        **{
            rows.PACED_DIRECT: {"latency_p50_s": direct_s, "latency_p99_s": direct_s},
            rows.PACED_GATEWAY: {"latency_p50_s": gateway_s, "latency_p99_s": gateway_s},
        },
    )


def test_what_is_added_is_the_median_of_the_rounds_differences():
    rounds = [paced(0, 0.001, 0.002), paced(1, 0.005, 0.0055), paced(2, 0.001, 0.0013)]
    formula = PairedDifference(metric="latency_p50_s", of=rows.PACED_GATEWAY, to=rows.PACED_DIRECT)
    assert formula.value(rounds) == pytest.approx(0.0005)


def test_a_difference_needs_both():
    formula = PairedDifference(metric="latency_p50_s", of=rows.PACED_GATEWAY, to=rows.PACED_DIRECT)
    assert formula.value([round_with(0, **{rows.PACED_DIRECT: {"latency_p50_s": 1.0}})]) is None


def whole_round(number: int) -> Round:
    latencies = {"latency_p50_s": 0.001, "latency_p99_s": 0.002, "messages_per_s": 400.0, "message_tokens": 1.0}
    gateway = {**latencies, "latency_p50_s": 0.0014, "cpu_per_message_s": 1e-4, "gateway_bytes": 2e8}
    relay = {"messages_per_s": 9000.0, "message_tokens": 1.0, "cpu_per_message_s": 1e-4, "gateway_bytes": 1e8}
    point = {"rate20_first_response_p50_s": 0.01, "rate20_first_response_p99_s": 0.02, "rate20_messages_per_s": 320.0}
    measured = {
        **{f"{load}.{rows.DIRECT}": latencies for load in (rows.PACED, rows.FLOOD, rows.IDLE)},
        **{f"{load}.{rows.GATEWAY}": gateway for load in (rows.PACED, rows.FLOOD, rows.IDLE)},
        **{f"{rows.RATE}.{way}": point for way in rows.WAYS},
        rows.RELAY_1: relay,
        rows.RELAY_8: relay,
    }
    return round_with(number, **measured)


def test_every_claim_of_the_gateway_follows_from_its_rows():
    run = run_of(whole_round(0), whole_round(1), benchmark="gateway")
    claimed = {claim["id"]: claim["holds"] for claim in judge(run)}
    assert set(claimed) == {claim.id for claim in CLAIMS if claim.benchmark == "gateway"}
    assert len(claimed) == 4
    assert all(claimed.values())


def test_a_table_shows_what_is_added_and_the_sweeps():
    text = markdown(run_of(whole_round(0), benchmark="gateway"))
    assert "| 8 streams, 50 tokens a second each | 1 (2) | 1.4 (2) | 0.4 (0) |" in text
    assert "| through the gateway | 10 (20); 320 |" in text
    assert "| 1 token a message, a gateway alone before a repeater | 9000 | 1 | 100 | 100 |" in text


def test_a_sweeps_point_sends_as_many_requests_as_fit_its_time():
    sweep = rows.SWEEPS
    assert sweep.requests(rows.RATE, 20) == 80
    assert sweep.requests(rows.CONCURRENCY, 4) == 100
