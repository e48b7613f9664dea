"""Exactness, a sample of the suite: a few short streams, undisturbed and resumed elsewhere."""

from __future__ import annotations

from pathlib import Path

from tests.exact.trial import Trial, random_checkpoint


def test_streams_resumed_in_another_process_and_batch_go_on_to_the_bit(tmp_path: Path) -> None:
    trial = Trial(checkpoint=random_checkpoint("llama", tmp_path), streams=16, tokens=48, longest_prompt=150)
    assert trial.diverged() == []
