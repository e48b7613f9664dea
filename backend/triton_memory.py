"""What memory a node's Triton has of its own: the difference over a load is what the model takes.

The server itself counts, for backends that live in it, and of the processes beside it those that run its models: the
Python backend names a model's folder on their command lines. Other models' processes come and go meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from serverless_triton.backend.processes import command_line, descendants, private_bytes


def triton_bytes(pid_file: Path, model_folders: Iterable[Path]) -> int:
    """Bytes that no file backs; 0 where the server does not run. Raises ValueError where the file holds no pid."""
    try:
        server = int(pid_file.read_text())
    except FileNotFoundError:
        return 0
    family = descendants(server)
    inside = tuple(f"{folder}/" for folder in model_folders)
    running = [pid for pid in family if any(part.startswith(inside) for part in command_line(pid))]
    theirs = {child for pid in running for child in descendants(pid)}
    return sum(map(private_bytes, {server, *running, *theirs}))
