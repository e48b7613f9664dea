"""The benchmark of predicted starts end to end, small: a real node and its starts. No claim is about it."""

import pytest

from perf import harness
from perf.loader.forms import Shape
from perf.scheduler.estimate import EstimateBenchmark
from perf.scheduler.estimate_rows import TIERS

TINY = Shape(
    name="tiny-computes", layers=2, hidden=128, intermediate=256, key_value=64, vocabulary=49152, computes=True
)
SMALL = EstimateBenchmark(name="scheduler-estimate-test", starts=1, warm_up=0, shapes=(TINY,))


def test_every_start_has_each_term_predicted_beside_actual(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(harness, "OUTPUT", tmp_path_factory.mktemp("estimate"))
    with SMALL.rivals(1) as rivals:
        measured = {tier: rivals[tier]() for tier in TIERS}
    for tier, measurement in measured.items():
        starts = measurement.details["starts"]
        assert [start["tier"] for start in starts] == [tier]
        for start in starts:
            assert start["actual"]["total_s"] > 0 < start["predicted"]["total_s"]
            assert start["predicted"].keys() == start["actual"].keys()
            assert start["error"] * start["actual"]["total_s"] == pytest.approx(
                abs(start["predicted"]["total_s"] - start["actual"]["total_s"])
            )
        assert measurement.details["errors"] == [start["error"] for start in starts]
