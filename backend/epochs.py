"""The newest leadership of schedulers that a node has heard of; older ones change nothing here any more (decision 7).

It is kept in a file of the run directory: an agent that was restarted must not listen to a scheduler that its
predecessor refused.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class StaleEpoch(Exception):
    """The permit's epoch is older than one this agent has seen: another scheduler leads (decision 7)."""


class Epochs:
    """Without a file it lasts as long as the process."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.highest = 0 if file is None else _read(file)

    def check(self, epoch: int) -> None:
        """Raises StaleEpoch. Remembers the highest epoch seen."""
        if epoch < self.highest:
            raise StaleEpoch(f"epoch {epoch} is over; {self.highest} leads")
        if epoch > self.highest:
            self.highest = epoch
            self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        beside = self._file.with_suffix(".new")
        try:
            beside.write_text(str(self.highest))
            beside.replace(self._file)
        except OSError as error:  # a full disk must not keep a server from being used; only a restart would notice
            logger.warning("epoch_not_kept file=%s error=%s", self._file, error.strerror)


def _read(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0
