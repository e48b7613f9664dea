"""Safetensors files for the loader's unit tests, written byte by byte so that they can also be wrong."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteFile = Callable[..., Path]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """write_file(header, data, name=...) writes a file; `header` is an object, or bytes to be taken as they are."""

    def write(header: dict[str, Any] | bytes, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    return write
