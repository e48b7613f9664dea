"""A store whose memory cannot be had says which option decides about it."""

import logging
from pathlib import Path

import pytest

from serverless_triton.loader import PagesUnavailable, StoreFull
from serverless_triton.loader.daemon import _arena_of, _create_arena
from serverless_triton.loader.memory_limits import read_memory_limits
from serverless_triton.loader.store_config import StoreConfig

MORE_THAN_ANY_ADDRESS_SPACE = 1 << 62


@pytest.mark.parametrize("pages", ["auto", "4k"])
def test_an_arena_that_cannot_be_mapped_names_the_option(pages: str) -> None:
    with pytest.raises(StoreFull, match=r"DRAM budget \(--dram-bytes, now \d+\)"):
        _arena_of(MORE_THAN_ANY_ADDRESS_SPACE, pages)  # type: ignore[arg-type]


@pytest.mark.skipif(read_memory_limits().free_hugetlb_bytes > 1 << 30, reason="this machine has hugetlb pages")
def test_missing_hugetlb_pages_are_counted_with_what_to_do() -> None:
    with pytest.raises(PagesUnavailable, match=r"\d+ pages of 2 MiB are free, 1024 are needed: raise nr_hugepages"):
        _arena_of(2 << 30, "hugetlb")


def test_a_budget_above_what_is_available_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    available_bytes = read_memory_limits().available_bytes
    caplog.set_level(logging.INFO, "serverless_triton.store")

    _create_arena(StoreConfig(socket_path=Path("/s"), dram_bytes=2 * available_bytes, pages="4k"))

    (record,) = (record for record in caplog.records if record.message.startswith("budget"))
    assert record.levelno == logging.WARNING
    assert "lower --dram-bytes" in record.message
