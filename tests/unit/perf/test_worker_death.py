"""What a neighbour's stream says about a death beside it, and what the agent's news say about the dead."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from perf import worker_death
from perf.claims import judge
from perf.harness import InvalidRound
from perf.results import Measurement, Round
from perf.worker_death import WorkerWatch, longest_pause
from serverless_triton.backend import agent_pb2
from tests.unit.perf.runs import run_of


def test_the_longest_pause_is_that_before_the_latest_response():
    assert longest_pause((1.0, 1.1, 1.4, 1.5, 3.5), 1.05, 2.0) == pytest.approx(0.3)


def test_a_pause_that_began_before_counts_where_it_ended():
    assert longest_pause((0.5, 1.5, 1.6), 1.0, 2.0) == 1.0


def test_without_a_response_all_of_the_time_is_a_pause():
    assert longest_pause((0.5, 3.0), 1.0, 2.0) == 1.0


def test_one_round_in_which_a_death_was_heard_of_late_breaks_the_claim():
    told_s = [0.02, 0.11, 0.02]
    rounds = [
        Round(number=n, order=(), measurements={"killed_worker": Measurement(figures={"last_to_hear_s": s})})
        for n, s in enumerate(told_s)
    ]
    (verdict,) = judge(run_of(*rounds, benchmark="worker-death"))
    assert verdict == {"id": "worker.death_reported_s", "value": 0.11, "goal": 0.1, "holds": False}


def states(*workers: list[int]) -> Iterator[agent_pb2.NodeState]:
    for shown in workers:
        replicas = [agent_pb2.Replica(worker_pid=pid) for pid in shown]
        yield agent_pb2.NodeState(replicas=[*replicas, agent_pb2.Replica(phase=agent_pb2.PARKED)])


def test_a_worker_is_gone_when_the_agent_shows_it_no_more(monkeypatch: pytest.MonkeyPatch):
    news = states([7, 8], [8], [8, 9])
    stub: Any = SimpleNamespace(Watch=lambda request, wait_for_ready, metadata: news)
    monkeypatch.setattr(worker_death.agent_pb2_grpc, "NodeAgentStub", lambda channel: stub)
    monkeypatch.setattr(worker_death, "WAIT_S", 0.01)
    watch = WorkerWatch(None)  # type: ignore[arg-type]
    assert watch.gone_s(7) > 0
    with pytest.raises(InvalidRound, match="still shows worker 8"):
        watch.gone_s(8)
