"""Files that are there to be locked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def open_lock_file(path: Path) -> IO[bytes]:
    """Opens it for flock(), and creates it where it is missing. What is there already is neither followed nor changed.

    Raises OSError, also for a symbolic link.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb", buffering=0)
