"""Machine settings that give a store large pages: the only code that changes any, and only on --configure-host.

What it changes stays when the store ends; the log has the old values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import HostNotConfigurable

PAGE_BYTES = 2 << 20
HUGE_PAGES = "sys/kernel/mm/hugepages/hugepages-2048kB"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting that is now another."""

    file: str
    old: str
    new: str


def configure_host(pages: str, arena_bytes: int, root: Path = Path("/")) -> tuple[SettingChange, ...]:
    """Makes room for an arena of this kind of pages ("auto" takes hugetlb); returns what it changed.

    Raises HostNotConfigurable where the kernel refuses; hugetlb pages that it gave too few of are given back.
    """
    if pages in ("auto", "hugetlb"):
        return _keep_huge_pages(arena_bytes, root / HUGE_PAGES)
    if pages == "memfd":
        return _advise_shared_memory(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return ()


def hugetlb_shortage(arena_bytes: int, root: Path = Path("/")) -> str:
    """Why there may be no arena of hugetlb pages, and what to do. Raises HostNotConfigurable where there are none."""
    directory = root / HUGE_PAGES
    free, needed = _number_in(directory / "free_hugepages"), -(-arena_bytes // PAGE_BYTES)
    return (
        f"{directory}: {free} pages of 2 MiB are free, {needed} are needed: raise nr_hugepages there, or have "
        "--configure-host do so, or leave the choice to --pages auto"
    )


def _keep_huge_pages(arena_bytes: int, directory: Path) -> tuple[SettingChange, ...]:
    file = directory / "nr_hugepages"
    old = _number_in(file)
    missing = -(-arena_bytes // PAGE_BYTES) - _number_in(directory / "free_hugepages")
    if missing <= 0:
        return ()
    _write(file, str(old + missing))
    new = _number_in(file)
    if new < old + missing:
        _write(file, str(old))
        raise HostNotConfigurable(
            f"{file}: the kernel gave {new - old} of {missing} pages of 2 MiB that the arena lacks; memory is taken or "
            "fragmented: lower --dram-bytes, configure them at boot, or leave --configure-host out"
        )
    return (SettingChange(file=str(file), old=str(old), new=str(new)),)


def _advise_shared_memory(file: Path) -> tuple[SettingChange, ...]:
    words = _read(file).split()
    old = next((word.strip("[]") for word in words if word.startswith("[")), "")
    if old not in ("never", "deny"):
        return ()
    _write(file, "advise")
    return (SettingChange(file=str(file), old=old, new="advise"),)


def _number_in(file: Path) -> int:
    return int(_read(file))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise HostNotConfigurable(f"{file}: {error.strerror}; this machine does not have that setting") from error


def _write(file: Path, value: str) -> None:
    try:
        file.write_text(value)
    except OSError as error:
        raise HostNotConfigurable(
            f"{file}: {error.strerror}; run as root on a writable /sys, or leave --configure-host out"
        ) from error
