"""Documents and leadership: the fake and SQLite answer alike; what SQLite makes of files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serverless_triton.scheduler.state.protocol import (
    ABSENT,
    MAX_DOCUMENT_BYTES,
    DocumentTooLarge,
    FakeStateStore,
    StateConflict,
    StateInUse,
    StateStore,
    StateUnavailable,
    StateUnusable,
)
from serverless_triton.scheduler.state.sqlite import SoleLeadership, SqliteStore


@pytest.fixture(params=["fake", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    made = FakeStateStore() if request.param == "fake" else await SqliteStore.open(tmp_path / "state.sqlite")
    yield made
    await made.close()


async def test_a_document_comes_back_as_it_was_put(store: StateStore) -> None:
    revision = await store.put("kept/a", {"x": [1, 2.5, None, "é"]})
    document = await store.get("kept/a")
    assert document is not None
    assert (document.value, document.revision) == ({"x": [1, 2.5, None, "é"]}, revision)
    assert await store.get("kept/b") is None


async def test_a_write_that_expects_another_revision_changes_nothing(store: StateStore) -> None:
    first = await store.put("a", 1, expected=ABSENT)
    second = await store.put("a", 2, expected=first)
    for expected in (first, ABSENT):
        with pytest.raises(StateConflict):
            await store.put("a", 3, expected=expected)
    with pytest.raises(StateConflict):
        await store.delete("a", expected=first)
    document = await store.get("a")
    assert document is not None
    assert (document.value, document.revision) == (2, second)


async def test_documents_are_listed_by_prefix_and_key(store: StateStore) -> None:
    for key in ("b/2", "a", "b/10", "c"):
        await store.put(key, key)
    await store.delete("b/10")
    await store.put("b/1", "b/1")
    assert [document.value for document in await store.list("b/")] == ["b/1", "b/2"]


async def test_a_watch_tells_what_is_there_and_then_every_change(store: StateStore) -> None:
    await store.put("w/a", 1)
    news = store.watch("w/")
    assert (await anext(news)).key == "w/a"
    coming = asyncio.ensure_future(anext(news))
    await asyncio.sleep(0)
    await store.put("other", 0)
    await store.put("w/b", 2)
    await store.delete("w/a")
    changes = [await asyncio.wait_for(coming, 5), await asyncio.wait_for(anext(news), 5)]
    assert [(c.key, None if c.document is None else c.document.value) for c in changes] == [("w/b", 2), ("w/a", None)]
    await news.aclose()


async def test_a_document_that_is_too_large_is_refused(store: StateStore) -> None:
    with pytest.raises(DocumentTooLarge, match="'a'"):
        await store.put("a", "x" * MAX_DOCUMENT_BYTES)


async def test_what_was_put_is_there_after_a_restart_in_a_file_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.sqlite"
    first = await SqliteStore.open(path)
    revision = await first.put("a", {"b": 1})
    files = sorted(path.parent.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await first.close()
    second = await SqliteStore.open(path)
    document = await second.get("a")
    assert document is not None
    assert (document.value, document.revision) == ({"b": 1}, revision)
    assert await second.put("a", 2) > revision
    await second.close()


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.touch(mode=0o644)
    store = await SqliteStore.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await store.close()


async def test_a_second_scheduler_does_not_get_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless_triton.scheduler.state.sqlite.BUSY_S", 0.1)
    path = tmp_path / "state.sqlite"
    first = await SqliteStore.open(path)
    with pytest.raises(StateInUse, match="another scheduler"):
        await SqliteStore.open(path)
    await first.close()
    await (await SqliteStore.open(path)).close()


async def test_another_programs_file_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StateUnusable, match=r"other\.sqlite: is another program's"):
        await SqliteStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["no database", "torn page"])
async def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.sqlite"
    store = await SqliteStore.open(path)
    for number in range(200):
        await store.put(f"key-{number}", "x" * 200)
    await store.close()
    content = bytearray(path.read_bytes())
    begin = 0 if damage == "no database" else len(content) // 2
    content[begin : begin + 4096] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(StateUnusable, match="move it away"):
        await SqliteStore.open(path)


async def test_a_later_versions_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(StateUnusable, match="later version"):
        await SqliteStore.open(path)


async def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable, match="cannot be opened"):
        await SqliteStore.open(tmp_path / "file" / "state.sqlite")


async def test_a_closed_store_is_unavailable() -> None:
    store = await SqliteStore.open(None)
    await store.close()
    await store.close()
    with pytest.raises(StateUnavailable):
        await store.get("a")


async def test_every_leadership_has_a_higher_epoch(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        store = await SqliteStore.open(tmp_path / "state.sqlite")
        leadership = await SoleLeadership.begin(store)
        epochs.append(leadership.epoch)
        assert leadership.may_act(0.0)
        await store.close()
    assert epochs == [1, 2, 3]


async def test_an_epoch_that_an_agent_has_seen_is_outranked_also_by_the_next_leadership() -> None:
    store = FakeStateStore()
    leadership = await SoleLeadership.begin(store)
    assert await leadership.rise_above(40) == 41
    assert (await SoleLeadership.begin(store)).epoch == 42


async def test_a_kept_epoch_that_is_none_is_refused() -> None:
    store = FakeStateStore()
    await store.put("epoch", "seven")
    with pytest.raises(StateUnusable, match="'seven'"):
        await SoleLeadership.begin(store)
