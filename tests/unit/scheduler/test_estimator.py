"""How long a start would take."""

from __future__ import annotations

import pytest

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.estimator import estimate_start, learn_fixed_cost
from tests.unit.scheduler.worlds import GB, model, server


def test_from_ssd_it_is_queue_and_bytes_over_bandwidth_and_the_fixed_cost():
    estimate = estimate_start(
        server(bandwidth={"ssd": 0.5 * GB, "dram": 20.0 * GB}, queued_bytes=GB), model(size=2 * GB)
    )
    assert (estimate.tier, estimate.queue_s, estimate.transfer_s, estimate.fixed_s) == ("ssd", 2.0, 4.0, 0.25)
    assert estimate.total_s == 6.25


def test_from_dram_the_disks_queue_does_not_matter():
    wanted = model()
    estimate = estimate_start(server(queued_bytes=9 * GB, in_dram=frozenset({wanted.checkpoint})), wanted)
    assert (estimate.tier, estimate.queue_s) == ("dram", 0.0)
    assert estimate.total_s == pytest.approx(0.30)


def test_the_fixed_cost_moves_toward_what_the_other_terms_left_unexplained():
    estimate = estimate_start(server(), model())
    once = learn_fixed_cost(0.25, estimate, actual_s=estimate.transfer_s + 1.25)
    assert once == pytest.approx(0.25 + 0.3 * 1.0)
    assert learn_fixed_cost(0.25, estimate, actual_s=0.0) == pytest.approx(0.25 * 0.7)


def test_a_parked_stub_has_a_fixed_cost_of_its_own():
    wanted = model()
    there = server(in_dram=frozenset({wanted.checkpoint}), parked={wanted.name: ReplicaId("m-1")})
    estimate = estimate_start(there, wanted)
    assert (estimate.state, estimate.fixed_s) == ("parked", 0.05)
    assert estimate_start(there, model("other")).state == "cold"
