"""A worker that is killed in the middle of a stream, among real processes: who hears of it, and who does not.

How soon to the millisecond is `perf.worker_death`'s.
"""

from __future__ import annotations

import os
import signal
import time

from serverless_triton.backend import agent_pb2
from tests.integration.node.conftest import HandStub, Node

ENDLESS = 50_000_000


def kill(node: Node, stub: HandStub, model: str) -> int:
    """In the middle of its stream; returns when its stub knows."""
    stub.until(stub.ask(ENDLESS), 10)
    worker = node.watcher.worker_of(model)
    os.kill(worker, signal.SIGKILL)
    stub.until_ended()
    return worker


def test_both_its_stub_and_the_scheduler_hear_of_it_within_a_second(node: Node, parameters: dict[str, str]):
    """A tenth of one, on a machine with nothing else to do. Whoever asked at intervals would take longer than this."""
    stub = node.stub("victim", parameters)
    stub.until(stub.ask(ENDLESS), 10)
    worker = node.watcher.worker_of("victim")
    killed_s = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    assert stub.until_ended() - killed_s < 1.0
    node.watcher.until(lambda state: not any(replica.worker_pid for replica in state.replicas))
    assert time.monotonic() - killed_s < 1.0


def test_the_scheduler_hears_that_only_its_stub_is_left_and_its_memory_free(node: Node, parameters: dict[str, str]):
    stub = node.stub("victim", parameters)
    before = node.watcher.until(lambda state: state.device_granted_bytes > 0)

    kill(node, stub, "victim")

    left = node.watcher.until(lambda state: not any(replica.worker_pid for replica in state.replicas))
    assert left.version > before.version  # told because it happened; what is only repeated has the version before
    assert [(replica.model, replica.phase) for replica in left.replicas] == [("victim", agent_pb2.PARKED)]
    node.watcher.until(lambda state: state.device_granted_bytes == 0)


def test_an_engine_that_is_told_to_die_does_so_in_the_middle_of_a_stream(node: Node, parameters: dict[str, str]):
    options = '{"fault": "dies", "fault_after_steps": 20}'
    stub = node.stub("doomed", {**parameters, "engine_options": options})
    stream = stub.ask(ENDLESS)
    stub.until_ended()
    assert stub.position(stream) <= 20


def test_its_neighbours_notice_nothing(node: Node, parameters: dict[str, str]):
    neighbour, victim = node.stub("neighbour", parameters), node.stub("victim", parameters)
    stream = neighbour.ask(ENDLESS)
    neighbour.until(stream, 10)
    worker = node.watcher.worker_of("neighbour")

    kill(node, victim, "victim")

    neighbour.until(stream, neighbour.position(stream) + 1000)  # each token once and in order, or `_note` fails
    assert neighbour.ended_s is None
    assert node.watcher.worker_of("neighbour") == worker


def test_the_next_request_works(node: Node, parameters: dict[str, str]):
    dead = kill(node, node.stub("victim", parameters), "victim")

    successor = node.stub("victim", parameters)
    successor.until(successor.ask(100), 100)

    assert node.watcher.worker_of("victim", other_than=dead)
