"""How long a start would take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.estimator import estimate_start, migration_s, parking_s, tier_of
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


def test_a_parked_stub_has_a_fixed_cost_of_its_own():
    wanted = model()
    there = server(in_dram=frozenset({wanted.checkpoint}), parked={wanted.name: ReplicaId("m-1")})
    estimate = estimate_start(there, wanted)
    assert (estimate.state, estimate.fixed_s) == ("parked", 0.05)
    assert estimate_start(there, model("other")).state == "cold"


def test_the_slowest_link_of_the_way_decides():
    slow_device = server(bandwidth={"ssd": 2.0 * GB, "dram": 1.0 * GB})
    assert estimate_start(slow_device, model(size=2 * GB)).transfer_s == 2.0


@pytest.mark.parametrize("queued_bytes", [0, GB])
def test_more_bytes_are_never_sooner(queued_bytes: int):
    sizes = [0, 1, GB // 3, GB, 7 * GB]
    there = server(queued_bytes=queued_bytes)
    totals = [estimate_start(there, model(size=size)).total_s for size in sizes]
    assert totals == sorted(totals)
    assert totals[0] >= 0.0


def test_what_the_model_needs_beside_its_server_counts_but_never_below_nothing():
    slow, quick = (replace(model(size=GB), fixed_offset_s={"cold": offset_s}) for offset_s in (0.5, -9.0))
    assert estimate_start(server(), slow).fixed_s == 0.75
    assert estimate_start(server(), quick).fixed_s == 0.0


def test_room_is_added():
    there = server(park_s=0.2)
    assert parking_s(there, 0) == 0.0
    with_room = estimate_start(there, model(), room_s=parking_s(there, 3))
    assert with_room.total_s == estimate_start(there, model()).total_s + 0.2


def test_a_move_costs_by_the_tokens_that_are_recomputed():
    assert migration_s(replace(model(), migration_s_per_token=0.001, migration_fixed_s=0.5), 2000) == 2.5


def test_the_uncertainty_grows_with_the_bytes_and_with_every_figures_error():
    there = server(bandwidth_error={"ssd": 0.1}, fixed_error_s={"cold": {"ssd": 0.3}})
    small, large = (estimate_start(there, model(size=size)).uncertainty_s for size in (0, 4 * GB))
    assert small == pytest.approx(0.3)
    assert large == pytest.approx(0.5)


def test_a_checkpoint_behind_a_url_comes_from_afar_unless_a_copy_is_known():
    remote = replace(model(), checkpoint="https://models/m")
    assert tier_of(server(), remote) == "remote"
    assert tier_of(server(on_ssd=frozenset({"https://models/m"})), remote) == "ssd"
    assert tier_of(server(in_dram=frozenset({"https://models/m"})), remote) == "dram"
    assert estimate_start(server(fixed_start_s={"cold": {"remote": 0.1}}), remote).transfer_s == pytest.approx(10.0)
