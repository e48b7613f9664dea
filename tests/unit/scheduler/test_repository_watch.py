"""What the watch tells of a repository on disk: looked at by hand, nothing sleeps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from serverless_triton.scheduler.catalogue import Catalogue, Change
from serverless_triton.scheduler.errors import RepositoryAway, UnknownModel
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from tests.unit.gateway.samples import CONFIG, add_model

OTHER = CONFIG.replace("/checkpoints/m", "/checkpoints/other")


class Watched:
    """A repository with one model that somebody has asked for, and what was told of it since."""

    def __init__(self, root: Path) -> None:
        self.root = root
        add_model(root, "m")
        self.catalogue = Catalogue(root)
        self.catalogue.is_watched = True
        self.changes: list[Change] = []
        self.catalogue.on_change = self.changes.append
        self.watch = RepositoryWatch(self.catalogue)
        self.catalogue.entry("m")

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(change.model, change.kind) for change in self.changes]

    def checkpoint(self, name: str = "m") -> str:
        spec = self.catalogue.entry(name).spec
        assert spec is not None
        return spec.checkpoint


@pytest.fixture
async def watched(tmp_path: Path) -> Watched:
    root = tmp_path / "repository"
    root.mkdir()
    made = Watched(root)
    await made.watch.look()
    return made


async def test_a_repository_as_it_was_found_is_no_news(watched: Watched) -> None:
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == []


async def test_a_changed_configuration_counts_once_it_was_seen_twice(watched: Watched) -> None:
    (watched.root / "m" / "config.pbtxt").write_text(OTHER)
    await watched.watch.look()
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")
    await watched.watch.look()
    assert (watched.told, watched.checkpoint()) == ([("m", "changed")], "/checkpoints/other")


async def test_what_is_being_written_waits_until_nobody_writes(watched: Watched) -> None:
    config = watched.root / "m" / "config.pbtxt"
    for number in range(3):
        config.write_text(OTHER + "\n" * number)
        await watched.watch.look()
    assert watched.told == []
    await watched.watch.look()
    assert watched.told == [("m", "changed")]


async def test_a_changed_file_of_the_version_is_seen(watched: Watched) -> None:
    before = watched.catalogue.entry("m").definition
    (watched.root / "m" / "1" / "tokenizer.json").write_text("{}")
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == [("m", "changed")]
    assert watched.catalogue.entry("m").definition == watched.changes[0].definition != before


async def test_bytecode_that_a_load_leaves_beside_a_model_changes_nothing(watched: Watched) -> None:
    bytecode = watched.root / "m" / "1" / "__pycache__" / "model.cpython-310.pyc"
    bytecode.parent.mkdir()
    bytecode.write_bytes(b"compiled")
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == []


async def test_a_comment_in_a_configuration_changes_nothing(watched: Watched) -> None:
    (watched.root / "m" / "config.pbtxt").write_text("# hello\n" + CONFIG)
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == []


async def test_a_broken_configuration_leaves_the_last_good_one_and_says_why(watched: Watched) -> None:
    (watched.root / "m" / "config.pbtxt").write_text("name: {")
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == [("m", "broken")]
    assert watched.checkpoint() == "/checkpoints/m"
    assert "config.pbtxt: 1:" in watched.catalogue.entry("m").trouble


async def test_a_configuration_that_was_mended_has_no_trouble_any_more(watched: Watched) -> None:
    for text in ("name: {", CONFIG):
        (watched.root / "m" / "config.pbtxt").write_text(text)
        await watched.watch.look()
        await watched.watch.look()
    assert watched.told == [("m", "broken")]
    assert watched.catalogue.entry("m").trouble == ""


async def test_a_model_that_appears_is_told(watched: Watched) -> None:
    add_model(watched.root, "later")
    await watched.watch.look()
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == [("later", "added")]


async def test_a_model_that_goes_is_told_and_unknown(watched: Watched) -> None:
    shutil.rmtree(watched.root / "m")
    await watched.watch.look()
    assert watched.checkpoint() == "/checkpoints/m"
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == [("m", "removed")]
    with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'm' is not found$"):
        watched.catalogue.entry("m")


async def test_a_configuration_that_is_away_for_a_moment_is_not_gone(watched: Watched) -> None:
    config = watched.root / "m" / "config.pbtxt"
    config.rename(config.with_name("aside"))
    await watched.watch.look()
    config.with_name("aside").rename(config)
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == []


async def test_a_repository_that_cannot_be_read_loses_no_model(watched: Watched) -> None:
    aside = watched.root.rename(watched.root.with_name("aside"))
    for _ in range(3):
        await watched.watch.look()
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")
    aside.rename(watched.root)
    await watched.watch.look()
    assert watched.told == []


async def test_a_repository_that_is_not_mounted_any_more_loses_no_model(watched: Watched) -> None:
    aside = watched.root.rename(watched.root.with_name("aside"))
    watched.root.mkdir()  # where it was mounted
    for _ in range(3):
        await watched.watch.look()
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")
    watched.root.rmdir()
    aside.rename(watched.root)
    for _ in range(2):
        await watched.watch.look()
    assert watched.told == []


@pytest.mark.parametrize("leaves_a_directory", [True, False])
async def test_a_refresh_while_the_repository_is_away_says_so_and_loses_no_model(
    watched: Watched, leaves_a_directory: bool
) -> None:
    aside = watched.root.rename(watched.root.with_name("aside"))
    if leaves_a_directory:
        watched.root.mkdir()  # where it was mounted
    for name in ("m", "unheard-of"):
        with pytest.raises(RepositoryAway) as away:
            watched.catalogue.refresh(name)
        assert (away.value.code, str(watched.root) in str(away.value)) == ("UNAVAILABLE", False)
    with pytest.raises(RepositoryAway):
        watched.catalogue.entry("unheard-of")
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")
    assert [entry.name for entry in watched.catalogue.entries()] == ["m"]
    if leaves_a_directory:
        watched.root.rmdir()
    aside.rename(watched.root)
    watched.catalogue.refresh("m")
    assert watched.told == []


async def test_a_repository_that_goes_while_it_is_looked_at_loses_no_model(watched: Watched) -> None:
    shutil.rmtree(watched.root / "m")
    await watched.watch.look()
    real = watched.catalogue.refresh

    def refresh(name: str, settled: object = None) -> None:
        watched.root.rename(watched.root.with_name("aside"))
        real(name)

    watched.catalogue.refresh = refresh  # type: ignore[method-assign]
    await watched.watch.look()
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")


async def test_the_last_model_of_a_repository_may_go(watched: Watched) -> None:
    shutil.rmtree(watched.root / "m")
    watched.catalogue.refresh("m")
    assert watched.told == [("m", "removed")]


async def test_a_model_that_cannot_be_read_is_not_gone(watched: Watched) -> None:
    model = watched.root / "m"
    aside = model.rename(watched.root.with_name("aside"))
    model.symlink_to(model)  # reading it is an error, but not that nothing is there
    for _ in range(3):
        await watched.watch.look()
    watched.catalogue.refresh("m")
    assert (watched.told, watched.checkpoint()) == ([], "/checkpoints/m")
    model.unlink()
    aside.rename(model)
    for _ in range(2):
        await watched.watch.look()
    assert watched.told == []


async def test_a_model_that_could_never_be_read_says_why(watched: Watched) -> None:
    (watched.root / "loop").symlink_to(watched.root / "loop")
    with pytest.raises(UnknownModel, match="symbolic links"):
        watched.catalogue.entry("loop")


async def test_a_watched_model_is_answered_without_the_disk(watched: Watched) -> None:
    shutil.rmtree(watched.root)
    assert watched.checkpoint() == "/checkpoints/m"


async def test_a_refresh_does_not_wait_for_the_watch(watched: Watched) -> None:
    (watched.root / "m" / "config.pbtxt").write_text(OTHER)
    watched.catalogue.refresh("m")
    assert (watched.told, watched.checkpoint()) == ([("m", "changed")], "/checkpoints/other")
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == [("m", "changed")]


async def test_other_things_in_the_repository_are_no_models(watched: Watched) -> None:
    (watched.root / "README.md").write_text("")
    (watched.root / "empty").mkdir()
    (watched.root / ".hidden").mkdir()
    os.utime(watched.root, ns=(1, 1))
    await watched.watch.look()
    await watched.watch.look()
    assert watched.told == []
