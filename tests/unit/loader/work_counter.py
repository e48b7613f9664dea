"""Counts what a piece of pure Python does, for tests that bound work and not time."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

Trace = Callable[[FrameType, str, Any], Any]


class TooMuchWork(Exception):
    """The work did not end within its bound."""


def instructions_of(work: Callable[[], object], at_most: int) -> int:
    """How many instructions of the interpreter `work` took. Raises TooMuchWork as soon as it has taken `at_most`."""
    counted = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Trace:
        nonlocal counted
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted += event == "opcode"
        if counted > at_most:
            raise TooMuchWork(f"more than {at_most} instructions")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return counted
