"""The gateway benchmark end to end, small: a real server, gateway and perf_analyzer. No claim is about it."""

from collections.abc import Iterator, Mapping

import pytest

from perf import harness
from perf.gateway import rows
from perf.gateway.benchmark import GatewayBenchmark
from perf.gateway.rows import Load, Sweep
from perf.harness import Measure

SMALL = GatewayBenchmark(
    name="gateway-test",
    paced=Load(model=rows.PACED, streams=2, tokens=20, tokens_per_s=50.0),
    flood=Load(model=rows.FLOOD, streams=2, tokens=200, tokens_per_s=0.0),
    idle=Load(model=rows.IDLE, streams=20, tokens=8, tokens_per_s=10.0),
    relay=Load(model="relayed", streams=2, tokens=500, tokens_per_s=0.0),
    sweep=Sweep(
        load=Load(model=rows.SWEEP, streams=4, tokens=4, tokens_per_s=100.0),
        concurrencies=(1, 2),
        rates_per_s=(10,),
        seconds=0.5,
    ),
)


@pytest.fixture(scope="module")
def measures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Measure]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "OUTPUT", tmp_path_factory.mktemp("gateway"))
        with SMALL.rivals(1) as rivals_of_a_run:
            yield rivals_of_a_run


def test_tokens_say_how_long_they_were_on_their_way_direct_and_through_the_gateway(
    measures: Mapping[str, Measure],
) -> None:
    direct, gateway = (measures[row]().figures for row in (rows.PACED_DIRECT, rows.PACED_GATEWAY))
    for figures in (direct, gateway):
        assert figures["messages"] == 40
        assert 0 < figures["latency_p50_s"] <= figures["latency_p99_s"] < 1.0
    assert gateway["cpu_per_message_s"] > 0


def test_streams_that_are_hardly_served_show_the_gateways_memory(measures: Mapping[str, Measure]) -> None:
    figures = measures[rows.IDLE_GATEWAY]().figures
    assert figures["gateway_bytes"] > 2**24
    assert figures["messages"] >= 20


def test_a_flood_may_come_in_longer_messages(measures: Mapping[str, Measure]) -> None:
    figures = measures[f"{rows.FLOOD}.{rows.GATEWAY}"]().figures
    assert figures["messages"] * figures["message_tokens"] == pytest.approx(400)


@pytest.mark.parametrize(("row", "each"), [(rows.RELAY_1, 1), (rows.RELAY_8, 8)])
def test_a_lone_gateway_relays_message_by_message(measures: Mapping[str, Measure], row: str, each: int) -> None:
    figures = measures[row]().figures
    assert (figures["messages"], figures["message_tokens"]) == (1000, each)


@pytest.mark.parametrize("way", rows.WAYS)
def test_perf_analyzer_sweeps_both_ways(measures: Mapping[str, Measure], way: str) -> None:
    concurrency, rate = (measures[f"{kind}.{way}"]().figures for kind in (rows.CONCURRENCY, rows.RATE))
    assert concurrency["concurrency2_messages_per_s"] > 0
    assert 0 < rate["rate10_first_response_p50_s"] < 1.0
