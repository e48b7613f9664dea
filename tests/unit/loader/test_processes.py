import errno
import os
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from serverless_triton.loader import processes
from serverless_triton.loader.errors import ProcessUnwatchable
from serverless_triton.loader.processes import UNKNOWN_PID, open_process, process_of


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


def test_what_has_ended_is_said(child: "subprocess.Popen[bytes]") -> None:
    process = process_of(child.pid)
    assert open_process(replace(process, start_time=process.start_time + 1)) is None
    child.communicate(b"\n")

    assert open_process(process) is None


def test_a_process_of_another_pid_namespace_is_told_what_to_do() -> None:
    with pytest.raises(ProcessUnwatchable, match="--pid=container"):
        process_of(UNKNOWN_PID)


def test_a_living_process_that_proc_does_not_show_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_start_time", lambda pid: 0)
    with pytest.raises(ProcessUnwatchable, match="hidepid"):
        process_of(os.getpid())


def test_a_want_of_descriptors_is_not_the_end_of_a_process(
    child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    process = process_of(child.pid)

    def exhausted(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "pidfd_open", exhausted)
    with pytest.raises(OSError, match="too many open files"):
        open_process(process)
    child.communicate(b"\n")
