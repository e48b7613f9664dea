"""What the SSD cache could not remove counts until it is gone, and is tried again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.remote import removals
from serverless_triton.loader.remote.journal import ChunkId
from serverless_triton.loader.remote.ssd_cache import SsdCache
from tests.unit.loader.test_remote_cache import CONTENT, checkpoint

OTHER = checkpoint("http://127.0.0.1:1/other.safetensors")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SsdCache]:
    """It has a copy of checkpoint(), and room for little else."""
    cache = SsdCache(tmp_path, len(CONTENT) * 3 // 2)
    keep(cache, checkpoint())
    yield cache
    cache.close()


def keep(cache: SsdCache, wanted: Checkpoint) -> None:
    entry = cache.begin(wanted)
    assert entry is not None
    with entry:
        entry.write(ChunkId(0, 0), CONTENT, _core.xxh3_128(CONTENT))
        entry.flush()
        cache.complete(entry)


def refuse_to_rename(path: Path, _target: Path) -> Path:
    """As where somebody mounted something there."""
    raise OSError(16, "Device or resource busy", str(path))


def test_what_cannot_be_moved_away_takes_its_room_and_is_told(cache: SsdCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", refuse_to_rename)
    cache.discard(checkpoint(), "it is bad")

    assert cache.status.entries == 0
    assert "Device or resource busy; remove it by hand" in cache.status.problem
    assert cache.status.used_bytes >= len(CONTENT)
    assert cache.begin(OTHER) is None, "there is no room beside what is still there"


def test_what_could_not_be_moved_away_goes_with_the_next_copy(
    cache: SsdCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse_to_rename)
        cache.discard(checkpoint(), "it is bad")
    keep(cache, OTHER)

    assert (cache.status.used_bytes, cache.status.problem) == (len(CONTENT), "")
    assert len(list((tmp_path / "entries").iterdir())) == 1
    assert not list((tmp_path / "removed").iterdir())


def test_a_stale_copy_is_no_obstacle_to_a_new_one(cache: SsdCache, tmp_path: Path) -> None:
    stale = tmp_path / "entries" / "stale"
    shutil.copytree(next((tmp_path / "entries").iterdir()), stale)
    cache.discard(checkpoint(), "it is bad")
    entry = cache.begin(checkpoint())
    assert entry is not None
    stale.rename(tmp_path / "entries" / entry.directory.name)
    with entry:
        entry.write(ChunkId(0, 0), CONTENT, _core.xxh3_128(CONTENT))
        entry.flush()
        cache.complete(entry)

    assert cache.status.entries == 1
    assert not cache.locate(checkpoint()).is_remote


def test_what_cannot_be_deleted_takes_its_room_and_is_told(cache: SsdCache, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(removals.shutil, "rmtree", refuse)
        cache.discard(checkpoint(), "it is bad")
    assert cache.status.used_bytes >= len(CONTENT)

    monkeypatch.setattr(removals.shutil, "rmtree", remove)
    keep(cache, OTHER)
    assert (cache.status.used_bytes, cache.status.problem) == (len(CONTENT), "")


def test_a_directory_that_somebody_cleared_by_hand_is_no_obstacle(cache: SsdCache, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "removed")
    keep(cache, replace(OTHER, files=tuple(replace(file, etag="2") for file in OTHER.files)))

    assert (cache.status.entries, cache.status.used_bytes) == (1, len(CONTENT))
