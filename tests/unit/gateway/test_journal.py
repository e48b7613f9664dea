"""Acceptance of upstream messages."""

from __future__ import annotations

import pytest

from serverless_triton.scheduler.journal import Journal, ResumePoint, Verdict


@pytest.fixture
def stream():
    return Journal().open("m")


def test_messages_in_order_are_accepted(stream):
    assert stream.accept(attempt=0, first_position=0, output_ids=[5, 6], text="ab") is Verdict.ACCEPTED
    assert stream.accept(attempt=0, first_position=2, output_ids=[7], text="c") is Verdict.ACCEPTED
    assert list(stream.output_ids) == [5, 6, 7]
    assert stream.emitted_text_length == 3


@pytest.mark.parametrize(
    ("attempt", "position", "verdict"),
    [(0, 0, Verdict.STALE), (1, 2, Verdict.STALE), (0, 1, Verdict.STALE), (0, 3, Verdict.GAP)],
)
def test_everything_else_changes_nothing_but_the_count(stream, attempt, position, verdict):
    stream.accept(attempt=0, first_position=0, output_ids=[5, 6], text="ab")
    assert stream.accept(attempt=attempt, first_position=position, output_ids=[9], text="no") is verdict
    assert list(stream.output_ids) == [5, 6]
    assert stream.emitted_text_length == 2
    assert stream.dropped_messages == 1


def test_an_earlier_attempt_is_stale_after_a_move(stream):
    stream.accept(attempt=0, first_position=0, output_ids=[5], text="a")
    stream.next_attempt()
    assert stream.resume_point() == ResumePoint(attempt=1, token_ids=(5,))
    assert stream.accept(attempt=0, first_position=1, output_ids=[9], text="no") is Verdict.STALE
    assert stream.accept(attempt=1, first_position=1, output_ids=[6], text="b") is Verdict.ACCEPTED


def test_nothing_is_accepted_after_the_end(stream):
    stream.accept(attempt=0, first_position=0, output_ids=[5], text="a")
    stream.learn([1, 2], 2, "stop")
    assert stream.accept(attempt=0, first_position=1, output_ids=[6], text="b") is Verdict.STALE
    assert list(stream.prompt_ids) == [1, 2]


def test_stream_ids_cannot_be_guessed_and_are_forgotten():
    journal = Journal()
    ids = {journal.open("m").stream for _ in range(100)}
    assert len(ids) == 100
    assert min(len(stream) for stream in ids) >= 20
    for stream in ids:
        journal.close(stream)
    assert len(journal) == 0
    assert list(journal) == []
