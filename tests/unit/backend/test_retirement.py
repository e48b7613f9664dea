"""When a worker wastes so much memory that it has to go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serverless_triton.backend.processes import private_bytes
from serverless_triton.backend.retirement import Memory, RetirementRule, WorkerMemory


@pytest.mark.parametrize(
    ("held", "needed", "due"),
    [
        (100, 0, False),  # as much as it may waste
        (101, 0, True),
        (1100, 1000, False),
        (1101, 1000, False),  # hardly anything of what it needs
        (1250, 1000, False),
        (1251, 1000, True),
        (0, 1000, False),
        (-5, 0, False),  # it gave back what it held when it was loaded
    ],
)
def test_a_worker_is_due_that_wastes_more_than_the_limit_and_a_quarter_of_its_need(
    held: int, needed: int, due: bool
) -> None:
    assert RetirementRule(waste_bytes=100).is_due(Memory(held_bytes=held, needed_bytes=needed)) is due


def test_on_a_cpu_what_came_since_the_load_is_wasted() -> None:
    sizes = iter([500, 500, 730])
    memory = WorkerMemory(measure=lambda pid: next(sizes))
    assert [memory.now().wasted_bytes for _ in range(2)] == [0, 230]


def test_memory_of_this_process_is_measured() -> None:
    """In a process of its own: here others take and give back memory meanwhile."""
    code = (
        "from serverless_triton.backend.retirement import WorkerMemory; memory = WorkerMemory(); "
        "kept = bytearray(b'x') * (64 << 20); print(memory.now().wasted_bytes)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert 60 << 20 < int(answer.stdout) < 80 << 20


def test_a_process_that_has_ended_holds_nothing() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert private_bytes(child) == 0
