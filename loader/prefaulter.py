"""Takes an arena's memory ahead of the loads that need it, on a thread that yields to everybody.

The first touch of fresh memory costs more than reading into it. The thread takes one page at a time, low addresses
first as loads do, and rests in between: as long as the page took, and much longer where others wanted the processor
meanwhile. It has the usual priority: a page that is being taken is locked, and a load that needs that very page should
not wait for a thread that never gets to run.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from . import _core
from .errors import StoreCancelled, StoreFull

log = logging.getLogger("serverless_triton.store")

STEP_BYTES = 2 << 20
# Of each second that a step had to wait for a processor.
WAIT_FACTOR = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took: time, and processor time of it."""

    wall_s: float
    cpu_s: float


def rest_after(step: Step) -> float:
    """How long to rest: never more than half of a processor, and next to nothing of one that others want."""
    return step.wall_s + WAIT_FACTOR * max(0.0, step.wall_s - step.cpu_s)


class Prefaulter:
    """Prefaults one arena once. Any thread may call its members."""

    def __init__(self, arena: _core.Arena) -> None:
        self._arena = arena
        self._job = _core.ReadJob()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-prefault", daemon=True)

    @property
    def prefaulted_bytes(self) -> int:
        """How much of the arena has memory for certain: its first bytes."""
        return self._job.bytes_done

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """No step begins until resume(); one that has begun ends within milliseconds."""
        self._job.pause()

    def resume(self) -> None:
        self._job.resume()

    def stop(self) -> None:
        """For good. Returns when the thread has ended, if it was started."""
        self._stopping.set()
        self._job.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        begin_s = time.monotonic()
        try:
            for offset in range(0, self._arena.bytes, STEP_BYTES):
                if self._stopping.wait(rest_after(self._take(offset))):
                    return
        except StoreCancelled:
            return
        except StoreFull as error:
            log.warning("prefault ended early at_bytes=%d: %s", self.prefaulted_bytes, error)
            return
        huge_bytes = self._arena.huge_bytes()
        took_s = time.monotonic() - begin_s
        log.info("prefaulted bytes=%d huge_bytes=%d took_s=%.1f", self.prefaulted_bytes, huge_bytes, took_s)

    def _take(self, offset: int) -> Step:
        self._job.proceed()
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        self._arena.prefault(offset, offset + STEP_BYTES, self._job)
        return Step(time.perf_counter() - wall_s, time.thread_time() - cpu_s)
