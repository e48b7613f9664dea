"""What the control loop hears of streams' tokens."""

from __future__ import annotations

import pytest

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.gateway.progress import ProgressReports
from serverless_triton.scheduler.journal import Journal, StreamJournal


@pytest.fixture
def reports() -> ProgressReports:
    return ProgressReports(Journal(), FakeAdmission())


def told(reports: ProgressReports) -> list[tuple[str, int, int]]:
    assert isinstance(reports.admission, FakeAdmission)
    reports.admission.progressed.clear()
    reports.tell()
    return list(reports.admission.progressed)


def hear(stream: StreamJournal, *tokens: int) -> None:
    position = len(stream.output_ids)
    stream.accept(attempt=stream.attempt, first_position=position, output_ids=tokens, text="")
    stream.learn([1, 2, 3], 3, None)


def test_streams_that_went_on_are_told_of_and_no_others(reports: ProgressReports) -> None:
    first, second = reports.journal.open("m"), reports.journal.open("m")
    assert told(reports) == []
    hear(first, 7)
    assert told(reports) == [(first.stream, 3, 1)]
    hear(second, 8)
    hear(second, 9)
    assert told(reports) == [(second.stream, 3, 2)]
    assert told(reports) == []


def test_a_stream_that_moved_is_told_of_again_though_nothing_came_since(reports: ProgressReports) -> None:
    stream = reports.journal.open("m")
    hear(stream, 7)
    told(reports)
    stream.next_attempt()
    assert told(reports) == [(stream.stream, 3, 1)]


def test_nothing_is_remembered_of_a_stream_that_ended(reports: ProgressReports) -> None:
    stream = reports.journal.open("m")
    hear(stream, 7)
    told(reports)
    reports.journal.close(stream.stream)
    assert told(reports) == []
    assert reports._told == {}
