"""Which scheduler a node listens to."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_triton.backend.epochs import Epochs, StaleEpoch


def test_an_agent_that_was_restarted_refuses_whom_its_predecessor_refused(tmp_path: Path):
    Epochs(tmp_path / "epoch").check(5)
    restarted = Epochs(tmp_path / "epoch")
    assert restarted.highest == 5
    with pytest.raises(StaleEpoch, match="epoch 4 is over; 5 leads"):
        restarted.check(4)


def test_a_file_that_says_nothing_is_no_leadership(tmp_path: Path):
    (tmp_path / "epoch").write_text("")
    assert Epochs(tmp_path / "epoch").highest == 0


def test_a_leadership_that_cannot_be_kept_counts_all_the_same(tmp_path: Path, caplog):
    epochs = Epochs(tmp_path / "nowhere" / "epoch")
    epochs.check(3)
    with pytest.raises(StaleEpoch):
        epochs.check(2)
    assert "epoch_not_kept" in caplog.text
