"""What the kernel says about a file's pages, on real files."""

import os
from pathlib import Path

import pytest

from perf import page_cache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20) + b"tail")
    return path


def test_a_file_that_was_read_is_resident(file: Path):
    page_cache.fill([file])
    assert page_cache.resident_bytes(file) == (1 << 20) + 4096
    assert page_cache.resident_share([file]) >= 1.0


def test_nothing_of_an_empty_file_is_resident(tmp_path: Path):
    (tmp_path / "empty").touch()
    assert page_cache.resident_bytes(tmp_path / "empty") == 0


def test_a_file_that_stays_is_no_empty_cache(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_cache, "_drop_all", lambda: False)
    monkeypatch.setattr(page_cache, "resident_bytes", lambda _file: 1 << 19)
    with pytest.raises(page_cache.WrongResidency, match=r"50\.0%"):
        page_cache.empty([file])


def test_without_root_the_cache_is_emptied_of_the_files_alone(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_cache, "DROP_CACHES", file.parent)  # cannot be written
    monkeypatch.setattr(page_cache, "resident_bytes", lambda _file: 0)
    assert "no root" in page_cache.empty([file])
