"""Receipts become rows."""

import pytest

from perf.start import path_figures


def test_segments_add_up_by_name_and_the_unexplained_has_a_share():
    segments = [("triton.load", 0.2), ("store.load", 0.1), ("triton.load", 0.05), ("unexplained", 0.05)]
    path = [{"name": name, "duration_s": duration_s} for name, duration_s in segments]
    figures = path_figures({"critical_path": path, "actual_s": 0.4})
    assert figures == pytest.approx({"path.triton.load_s": 0.25, "path.store.load_s": 0.1, "unexplained_share": 0.125})
