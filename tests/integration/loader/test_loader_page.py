"""docs/loader.md does what it says: its Python blocks run in order, against a real store."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.cli.store import command

PAGE = Path(__file__).parents[3] / "docs" / "loader.md"


def test_the_page_s_examples_run(
    daemon: Any, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVERLESS_TRITON_STORE", str(daemon.socket))
    daemon.connect().close()
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4

    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)

    assert names["weight"].tolist() == names["tensors"][names["names"][0]].tolist()


def test_the_page_lists_every_command() -> None:
    listed = re.findall(r"^\| `(\w+)(?: [A-Z ]+)?` \|", PAGE.read_text(), re.MULTILINE)

    assert sorted(listed) == sorted(command.commands)
