"""What tells one definition of a model from another, and how replicas carry it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.definitions import definition, definition_of, new_replica_id, take_stamp


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    for version in ("1", "2"):
        (folder / version / "sub").mkdir(parents=True)
        (folder / version / "sub" / "tokenizer.json").write_text("{}")
    (folder / "config.pbtxt").write_text("")
    return folder


def digest(directory: Path, config: bytes = b"", versions: tuple[str, ...] = ("1", "2")) -> str:
    return definition(config, take_stamp(directory), versions)


def test_nothing_changed_is_the_same_definition(directory: Path) -> None:
    assert digest(directory) == digest(directory)


def test_a_configuration_counts_by_what_it_says_not_by_its_file(directory: Path) -> None:
    before = digest(directory, b"a")
    os.utime(directory / "config.pbtxt", ns=(1, 1))
    assert digest(directory, b"a") == before
    assert digest(directory, b"b") != before


def test_a_file_of_a_version_that_is_written_anew_makes_another_definition(directory: Path) -> None:
    before = digest(directory)
    os.utime(directory / "1" / "sub" / "tokenizer.json", ns=(1, 1))
    assert digest(directory) != before


def test_a_file_that_takes_anothers_place_makes_another_definition(directory: Path) -> None:
    file = directory / "1" / "sub" / "tokenizer.json"
    before, times = digest(directory), file.stat()
    other = directory / "other"
    other.write_text("[]")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert digest(directory) != before


def test_a_version_that_comes_makes_another_definition(directory: Path) -> None:
    before = digest(directory, versions=("1", "2"))
    (directory / "3").mkdir()
    assert digest(directory, versions=("1", "2", "3")) != before


def test_files_of_versions_that_are_not_served_do_not_count(directory: Path) -> None:
    before = digest(directory, versions=("2",))
    os.utime(directory / "1" / "sub" / "tokenizer.json", ns=(1, 1))
    assert digest(directory, versions=("2",)) == before


def test_what_lies_beside_the_versions_does_not_count(directory: Path) -> None:
    before = take_stamp(directory)
    (directory / "labels.txt").write_text("a")
    assert take_stamp(directory) == before


def test_a_link_that_leads_nowhere_is_no_error(directory: Path) -> None:
    (directory / "1" / "link").symlink_to("/nowhere")
    assert any(file.path == "1/link" for file in take_stamp(directory).versions)


def test_a_directory_without_a_configuration_has_no_stamp(directory: Path) -> None:
    (directory / "config.pbtxt").unlink()
    with pytest.raises(FileNotFoundError):
        take_stamp(directory)


def test_a_replica_carries_its_definition(directory: Path) -> None:
    known = digest(directory)
    assert definition_of(new_replica_id("a-b", known)) == known


@pytest.mark.parametrize("replica", ["a-0123456789ab", "a", "0123456789ab-0123456789ab", "a-" + "0" * 12 + "-x"])
def test_a_replica_that_was_told_none_has_none(replica: str) -> None:
    assert definition_of(ReplicaId(replica)) == ""
    assert definition_of(new_replica_id("m", "")) == ""
