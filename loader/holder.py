"""The process that outlives the daemon: forks it, and forks another when it dies.

The arena's writable mapping can be handed on by fork() alone, since nobody could get it again; the listening socket and
the state slots go the same way. So the holder does nothing else that could kill it: it starts no thread, serves nobody.
It ends when it is told to, when the daemon ends by itself, when the first daemon cannot start, or when daemons keep
dying. Once a daemon has started nothing that one says ends the holder, since the arena would end with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import _core
from .errors import LoaderError, StoreUnavailable, error_of
from .restarts import MAX_QUICK_DEATHS, STEADY_S, Restarts

log = logging.getLogger("serverless_triton.store")

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
# How long a daemon that was told to stop may take: a stopped or stuck one is killed then.
GRACE_S = 10.0
CRASHED = 70  # EX_SOFTWARE of sysexits.h
_MAX_FAILURE_BYTES = 4096  # of a message; fits a pipe that nobody reads yet


# What a daemon says through its pipe once it has started; a failure to start begins with the name of its type.
_STARTED = b"+"


class Startup:
    """A daemon's start, as the daemon itself tells its holder of it."""

    def __init__(self, pipe: int, *, is_restart: bool) -> None:
        self.is_restart = is_restart
        """Whether a daemon before this one had started, so that clients may have leases on the arena."""
        self._pipe = pipe
        self._has_succeeded = False

    def succeeded(self) -> None:
        """Whatever ends the daemon from now on is a crash."""
        os.write(self._pipe, _STARTED)
        self._has_succeeded = True

    def failed(self, error: LoaderError) -> None:
        """The daemon ends of this."""
        if self._has_succeeded:
            log.error("daemon crashed", exc_info=error)
        else:
            os.write(self._pipe, f"{type(error).__name__}\n{error}".encode()[:_MAX_FAILURE_BYTES])


@dataclass(frozen=True, slots=True)
class _Daemon:
    pid: int
    pipe: int
    """How its start went."""
    started_at_s: float


def hold(daemon: Callable[[Startup], None]) -> None:
    """Runs `daemon` in a child process, again after each death, until SIGTERM or SIGINT or until it returns.

    For the only thread of the process. Raises what the first `daemon` raised before it had started, if that is a
    LoaderError; StoreUnavailable where daemons keep dying.
    """
    with _blocked_signals() as usual_mask:
        restarts, has_started = Restarts(), False
        while True:
            child = _fork(daemon, usual_mask, is_restart=has_started)
            status, told_to_stop = _wait_for(child)
            started, failure = _start_of(child)
            has_started = has_started or started
            if failure is not None and not has_started:
                raise failure
            if told_to_stop or status == 0:
                return
            if failure is not None:
                log.error("daemon could not start pid=%d: %s", child.pid, failure)
            pause_s = restarts.pause_after(time.monotonic() - child.started_at_s)
            if pause_s is None:
                raise StoreUnavailable(
                    f"the store's daemon died {MAX_QUICK_DEATHS + 1} times, each within {STEADY_S:.0f} s of its start; "
                    "see its log"
                )
            log.warning("daemon died pid=%d status=%d restart_in_s=%.2f", child.pid, status, pause_s)
            if signal.sigtimedwait(STOP_SIGNALS, pause_s) is not None:
                return


@contextlib.contextmanager
def _blocked_signals() -> Iterator[set[signal.Signals]]:
    """Signals wait until they are asked for, so that none comes between a look and a wait."""
    usual: set[signal.Signals] = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})  # type: ignore[assignment]
    try:
        yield usual
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _fork(daemon: Callable[[Startup], None], mask: set[signal.Signals], *, is_restart: bool) -> _Daemon:
    receiving, sending = os.pipe()
    holder = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        _be_daemon(daemon, mask, holder, Startup(sending, is_restart=is_restart))
    os.close(sending)
    log.info("daemon started pid=%d", pid)
    return _Daemon(pid, receiving, time.monotonic())


def _be_daemon(daemon: Callable[[Startup], None], mask: set[signal.Signals], holder: int, startup: Startup) -> None:
    """Never returns: the stack below belongs to the holder."""
    status = CRASHED
    try:
        # At once and whatever state it is in: a daemon without its holder could not be followed by another.
        _core.die_with_parent(signal.SIGKILL)
        if os.getppid() == holder:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            daemon(startup)
        status = 0
    except LoaderError as error:
        startup.failed(error)
    except BaseException:
        log.exception("daemon crashed")
    finally:
        logging.shutdown()
        os._exit(status)


def _wait_for(child: _Daemon) -> tuple[int, bool]:
    """The status that the daemon ended with, and whether it was told to."""
    status = _end_of(child, lambda: signal.sigwait(STOP_SIGNALS | {signal.SIGCHLD}) not in STOP_SIGNALS)
    if status is not None:
        return status, False
    os.kill(child.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S
    status = _end_of(child, lambda: _sees_child_change(deadline_s - time.monotonic()))
    if status is None:
        log.warning("daemon did not stop within %.0f s: killed pid=%d", GRACE_S, child.pid)
        os.kill(child.pid, signal.SIGKILL)
        # It dies once the kernel has ended what it was doing, which may take longer than anybody can say.
        status = _end_of(child, lambda: signal.sigwait({signal.SIGCHLD}) == signal.SIGCHLD)
    assert status is not None
    return status, True


def _end_of(child: _Daemon, goes_on: Callable[[], bool]) -> int | None:
    """The status that the daemon ended with; None where `goes_on`, which waits for a change, said no before."""
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if not goes_on():
            return None


def _sees_child_change(timeout_s: float) -> bool:
    return signal.sigtimedwait({signal.SIGCHLD}, max(0.0, timeout_s)) is not None


def _start_of(child: _Daemon) -> tuple[bool, LoaderError | None]:
    """Whether the daemon had started, and what it could not start for."""
    with os.fdopen(child.pipe, "rb") as pipe:
        said = pipe.read(_MAX_FAILURE_BYTES)
    if not said or said == _STARTED:
        return bool(said), None
    name, _, message = said.decode(errors="replace").partition("\n")
    return False, error_of(name, message)
