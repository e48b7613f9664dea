"""The cache: entries are whole or absent, whoever builds them and however that ends."""

import threading
from pathlib import Path

import pytest

from serverless_triton.backend.errors import PackageUnavailable
from serverless_triton.backend.package_cache import cache_directory, ensure_entry


def test_the_users_choice_of_cache_comes_first():
    assert cache_directory({"SERVERLESS_TRITON_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/serverless-triton")
    assert cache_directory({}) == Path.home() / ".cache" / "serverless-triton"


def test_an_entry_is_built_once_by_whoever_comes_first(tmp_path: Path):
    builds: list[Path] = []

    def build(target: Path) -> None:
        builds.append(target)
        (target / "whole").touch()

    threads = [
        threading.Thread(target=ensure_entry, args=(tmp_path / "e", build), kwargs={"witness": "whole"})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(builds) == 1
    assert (tmp_path / "e" / "whole").exists()


def test_a_build_that_fails_leaves_nothing_and_the_next_one_begins_anew(tmp_path: Path):
    def fail(target: Path) -> None:
        (target / "half").touch()
        raise PackageUnavailable("no network")

    with pytest.raises(PackageUnavailable):
        ensure_entry(tmp_path / "e", fail, witness="whole")
    assert not (tmp_path / "e").exists()

    ensure_entry(tmp_path / "e", lambda target: (target / "whole").touch(), witness="whole")
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["whole"]


def test_a_build_that_does_not_make_what_is_looked_for_is_an_error(tmp_path: Path):
    with pytest.raises(PackageUnavailable, match="has no bin/server"):
        ensure_entry(tmp_path / "e", lambda _target: None, witness="bin/server")


def test_a_leftover_of_a_killed_build_is_no_entry(tmp_path: Path):
    (tmp_path / "e.partial").mkdir()
    (tmp_path / "e.partial" / "half").touch()
    ensure_entry(tmp_path / "e", lambda target: (target / "whole").touch(), witness="whole")
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["whole"]
