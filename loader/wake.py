"""What ends all waiting of one session for good, from any thread."""

from __future__ import annotations

import os


class Wake:
    """A descriptor that is readable from set() on."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._process = os.getpid()

    def __del__(self) -> None:
        os.close(self.descriptor)

    def set(self) -> None:
        # A child made by fork() shares the descriptor; what it closes is not its parent's session.
        if os.getpid() == self._process:
            os.eventfd_write(self.descriptor, 1)
