"""Lock files: what somebody put in their place is neither followed nor changed."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from serverless_triton.loader.daemon import _listener_at
from serverless_triton.loader.errors import StoreError
from serverless_triton.loader.lock_file import open_lock_file
from serverless_triton.loader.remote.ssd_cache import SsdCache


def make_cache(directory: Path) -> None:
    SsdCache(directory, 1000).close()


def make_listener(directory: Path) -> None:
    with _listener_at(directory / "store"):
        pass


def test_a_new_one_is_its_owners_alone(tmp_path: Path):
    with open_lock_file(tmp_path / "lock"):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


@pytest.mark.parametrize(("make", "name"), [(make_cache, "lock"), (make_listener, "store.lock")])
def test_what_is_in_it_stays(tmp_path: Path, make: Callable[[Path], None], name: str):
    (tmp_path / name).write_text("precious")
    make(tmp_path)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(("make", "name"), [(make_cache, "lock"), (make_listener, "store.lock")])
def test_a_link_is_not_followed(tmp_path: Path, make: Callable[[Path], None], name: str):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"cannot (use|lock)"):
        make(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
