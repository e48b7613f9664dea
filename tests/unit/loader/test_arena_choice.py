"""What a store's memory is made of, how much of it that allows, and which option decides where it cannot be had."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_triton.loader import BudgetTooLarge, PagesUnavailable, StoreFull, daemon
from serverless_triton.loader.daemon import _arena_of, _create_arena
from serverless_triton.loader.host_settings import SettingChange
from serverless_triton.loader.memory_limits import MemoryLimits, read_memory_limits
from serverless_triton.loader.store_config import StoreConfig

GIB = 1 << 30
MORE_THAN_ANY_ADDRESS_SPACE = 1 << 62


class Machine:
    """One with 20 GiB available, hugetlb pages beside, and a cgroup; it makes no arena, but says of what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cgroup_bytes = 16 * GIB
        self.counted_hugetlb_bytes = 0
        self.free_hugetlb_bytes = 0
        monkeypatch.setattr(daemon, "read_memory_limits", self.limits)
        monkeypatch.setattr(daemon, "configure_host", self.configure)
        monkeypatch.setattr(daemon, "_core", SimpleNamespace(Arena=self.arena))

    def keep(self, hugetlb_bytes: int) -> None:
        self.counted_hugetlb_bytes = self.free_hugetlb_bytes = hugetlb_bytes

    def limits(self) -> MemoryLimits:
        return MemoryLimits(
            available_bytes=20 * GIB,
            free_hugetlb_bytes=self.counted_hugetlb_bytes,
            cgroup_bytes=self.cgroup_bytes,
            cgroup_file="/the/limit",
        )

    def configure(self, pages: str, arena_bytes: int) -> tuple[SettingChange, ...]:
        assert pages == "hugetlb"
        self.free_hugetlb_bytes = max(self.free_hugetlb_bytes, arena_bytes)
        return ()

    def arena(self, size_bytes: int, pages: str) -> SimpleNamespace:
        if pages == "hugetlb" and size_bytes > self.free_hugetlb_bytes:
            raise PagesUnavailable("no arena of hugetlb pages")
        kind = "tmpfs" if pages == "auto" else pages
        return SimpleNamespace(bytes=size_bytes, kind=kind, page_bytes=2 << 20, interleaved_nodes=[])

    def made(self, **options: Any) -> tuple[int, str]:
        """Size and kind of the arena of a store with these options."""
        arena = _create_arena(StoreConfig(socket_path=Path("/s"), **options))
        return arena.bytes, arena.kind


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("pages", ["tmpfs", "memfd", "4k"])
def test_pages_that_the_machine_keeps_make_an_arena_of_others_no_larger(machine: Machine, pages: str) -> None:
    without = machine.made(pages=pages)
    machine.keep(200 * GIB)

    assert machine.made(pages=pages) == without
    with pytest.raises(BudgetTooLarge, match="/the/limit"):
        machine.made(pages=pages, dram_bytes=17 * GIB)


def test_the_best_arena_takes_the_pages_that_the_machine_keeps(machine: Machine) -> None:
    machine.keep(200 * GIB)

    assert machine.made() == (200 * GIB, "hugetlb")
    assert machine.made(dram_bytes=17 * GIB) == (17 * GIB, "hugetlb")


def test_where_kept_pages_do_not_suffice_the_cgroup_limits_the_best_arena(machine: Machine) -> None:
    without = machine.made()
    machine.counted_hugetlb_bytes = 200 * GIB  # somebody else was faster

    assert machine.made() == without
    assert machine.made(dram_bytes=8 * GIB) == (8 * GIB, "tmpfs")
    with pytest.raises(BudgetTooLarge, match="/the/limit"):
        machine.made(dram_bytes=17 * GIB)


@pytest.mark.parametrize("pages", ["auto", "hugetlb"])
def test_pages_that_the_store_may_make_need_not_fit_the_cgroup(machine: Machine, pages: str) -> None:
    machine.cgroup_bytes = GIB

    assert machine.made(pages=pages, dram_bytes=4 * GIB, configure_host=True) == (4 * GIB, "hugetlb")


@pytest.mark.parametrize("pages", ["auto", "4k"])
def test_an_arena_that_cannot_be_mapped_names_the_option(pages: str) -> None:
    with pytest.raises(StoreFull, match=r"DRAM budget \(--dram-bytes, now \d+\)"):
        _arena_of(MORE_THAN_ANY_ADDRESS_SPACE, pages)  # type: ignore[arg-type]


@pytest.mark.skipif(read_memory_limits().free_hugetlb_bytes > 1 << 30, reason="this machine has hugetlb pages")
def test_missing_hugetlb_pages_are_counted_with_what_to_do() -> None:
    with pytest.raises(PagesUnavailable, match=r"\d+ pages of 2 MiB are free, 1024 are needed: raise nr_hugepages"):
        _create_arena(StoreConfig(socket_path=Path("/s"), dram_bytes=2 << 30, pages="hugetlb"))


def test_a_budget_above_what_is_available_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    available_bytes = read_memory_limits().available_bytes
    caplog.set_level(logging.INFO, "serverless_triton.store")

    _create_arena(StoreConfig(socket_path=Path("/s"), dram_bytes=2 * available_bytes, pages="4k"))

    (record,) = (record for record in caplog.records if record.message.startswith("budget"))
    assert record.levelno == logging.WARNING
    assert "lower --dram-bytes" in record.message
