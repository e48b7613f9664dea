import os
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from serverless_triton.loader.processes import UNKNOWN_PID, ProcessId, open_process, process_of


@pytest.fixture
def child() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_process_is_known_by_its_pid_and_when_it_started(child: "subprocess.Popen[bytes]") -> None:
    process = process_of(child.pid)

    assert process == process_of(child.pid)
    assert process.start_time > process_of(os.getppid()).start_time
    child.communicate(b"\n")
    assert process_of(child.pid).start_time == 0


def test_its_end_is_seen(child: "subprocess.Popen[bytes]") -> None:
    descriptor = open_process(process_of(child.pid))
    assert descriptor is not None
    assert not select.select([descriptor], [], [], 0)[0]
    child.communicate(b"\n")

    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)


def test_what_cannot_be_watched_is_said(child: "subprocess.Popen[bytes]") -> None:
    process = process_of(child.pid)
    assert open_process(replace(process, start_time=process.start_time + 1)) is None
    assert open_process(ProcessId(pid=UNKNOWN_PID, start_time=1)) is None
    child.communicate(b"\n")

    assert open_process(process) is None
