"""The core's arena as Python sees it; tests/cpp/arena_test.cc has the rest."""

import gc
import os
import weakref
from pathlib import Path

import pytest

from serverless_triton.loader import PagesUnavailable, StoreCancelled, _core

MEBIBYTE = 1 << 20


@pytest.fixture
def arena() -> _core.Arena:
    return _core.Arena(4 * MEBIBYTE, "4k")


def test_bytes_written_into_the_arena_are_seen_by_those_who_map_its_descriptor(arena: _core.Arena) -> None:
    mapping = _core.ArenaMapping(arena.client_fd(), arena.bytes)

    arena.write(4096, b"weights")

    view = memoryview(mapping.slice(4096, 7))
    assert bytes(view) == b"weights"
    assert arena.hash(4096, 7) == _core.xxh3_128(b"weights")


def test_only_the_store_s_own_view_may_be_written(arena: _core.Arena) -> None:
    mapping = _core.ArenaMapping(arena.client_fd(), arena.bytes)

    assert not memoryview(arena).readonly
    assert memoryview(mapping.slice(0, 8)).readonly
    assert memoryview(_core.ArenaMapping.scattered(arena.client_fd(), [(0, 4096)])).readonly


def test_a_slice_is_there_until_the_last_view_of_it_is_gone(arena: _core.Arena) -> None:
    slice_ = _core.ArenaMapping(arena.client_fd(), arena.bytes).slice(0, 8)
    gone: list[bool] = []
    weakref.finalize(slice_, gone.append, True)
    view = memoryview(slice_)

    del slice_
    gc.collect()
    assert not gone
    view.release()
    del view
    gc.collect()

    assert gone


def test_scattered_pieces_come_in_the_order_asked_for(arena: _core.Arena) -> None:
    arena.write(0, b"second")
    arena.write(8192, b"first")

    view = memoryview(_core.ArenaMapping.scattered(arena.client_fd(), [(8192, 4096), (0, 4096)]))

    assert bytes(view[:5]) == b"first"
    assert bytes(view[4096:4102]) == b"second"


@pytest.mark.parametrize("kind", ["4k", "memfd", "hugetlb"])
def test_mapping_ahead_takes_no_memory_that_the_store_has_not(kind: str) -> None:
    try:
        arena = _core.Arena(8 * MEBIBYTE, kind)
    except PagesUnavailable:
        pytest.skip("this machine keeps no hugetlb pages")
    arena.write(arena.bytes - 4096, b"a small entry lies at the top")
    mapping, taken = _core.ArenaMapping(arena.client_fd(), arena.bytes), os.fstat(arena.client_fd()).st_blocks

    mapping.populate(_core.ReadJob())

    assert os.fstat(arena.client_fd()).st_blocks == taken
    assert bytes(mapping.slice(arena.bytes - 4096, 7)) == b"a small"


def test_prefaulting_takes_memory_and_counts_it(arena: _core.Arena) -> None:
    job = _core.ReadJob()

    arena.prefault(0, arena.bytes, job)

    assert job.bytes_done == arena.bytes
    assert os.fstat(arena.client_fd()).st_blocks * 512 == arena.bytes


def test_cancelled_prefaulting_is_a_typed_error(arena: _core.Arena) -> None:
    job = _core.ReadJob()
    job.cancel()

    with pytest.raises(StoreCancelled):
        arena.prefault(0, arena.bytes, job)


def test_a_kind_that_the_machine_lacks_is_a_typed_error() -> None:
    pages_kept = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").read_text())

    with pytest.raises(PagesUnavailable, match="hugetlb"):
        _core.Arena((pages_kept + 1) * _core.HUGE_PAGE_BYTES, "hugetlb")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, hugetlb, tmpfs, memfd or 4k, not 1g"):
        _core.Arena(MEBIBYTE, "1g")


def test_memory_nodes_are_told_by_the_directory_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "has_memory").write_text("0\n")

    assert _core.Arena(MEBIBYTE, "4k", node_root=tmp_path).interleaved_nodes == []


def test_files_are_read_straight_into_the_arena(arena: _core.Arena, tmp_path: Path) -> None:
    content = os.urandom(3 * 4096 + 5)
    (tmp_path / "file").write_bytes(content)
    reader = _core.Reader(threads=1)

    reader.read([_core.FileImage(str(tmp_path / "file"))], arena, [[(MEBIBYTE, 4 * 4096)]], _core.ReadJob())

    assert arena.hash(MEBIBYTE, len(content)) == _core.xxh3_128(content)
