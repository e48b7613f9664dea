"""The live comparison end to end, small: two real nodes, the present policy. No claim is about it."""

import pytest

from perf import harness
from perf.scheduler import live
from perf.scheduler.fleet import DEFAULT_POLICY, FleetSpec
from perf.scheduler.live import FAKE, LiveBenchmark

NODES = FleetSpec(
    nodes=2, models=4, models_in_dram=2, models_on_device=1, ssd_bytes_per_second=16 << 20, limits=FAKE, timeout_s=30.0
)
SMALL = LiveBenchmark(
    policies=(DEFAULT_POLICY,), loads=(0.5,), fleet=NODES, seconds=2.0, capacity_s=2.0, at_a_time=8, most_tokens=8
)


def test_a_policy_is_measured_from_the_same_beginning_each_time(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(harness, "OUTPUT", tmp_path_factory.mktemp("live"))
    monkeypatch.setattr(live, "CHECKPOINT_BYTES", 4 << 20)
    with SMALL.rivals(1) as rivals:
        measured = rivals[f"{DEFAULT_POLICY}@0.5"]()
    figures, asked = measured.figures, measured.details["requests"]
    assert figures["timeouts"] == figures["failures"] == 0
    assert 0 < figures["p50_s"] <= figures["p99_s"] < 30.0
    assert figures["gateway_mean_s"] <= figures["mean_s"]
    # Nothing runs at the beginning, and what was near before is near again: each model is in one node's DRAM.
    model, _, _, _, kind, tier, server, *_ = asked[0]
    assert (kind, tier) == ("cold", "dram")
    assert server == f"server-{int(model[-2:]) % NODES.nodes}"
