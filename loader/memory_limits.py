"""How much memory a store may take: what its cgroup allows, what the machine has left, and what was asked for.

Reads /proc and cgroup files below a root that tests choose; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import BudgetTooLarge

# A store that nobody gave a budget takes this share of what it could have.
SHARE = 0.5
# What the store's own processes take beside the arena.
PROCESS_BYTES = 128 << 20
PAGE_BYTES = 2 << 20
# cgroup v1 writes "no limit" as the largest multiple of a page.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """`cgroup_bytes` is None where no cgroup limits this process; `cgroup_file` is what says so.

    `free_hugetlb_bytes`: 2 MiB pages that the machine keeps and nobody has: no cgroup counts those as memory, and no
    other memory can take their place.
    """

    available_bytes: int
    free_hugetlb_bytes: int
    cgroup_bytes: int | None = None
    cgroup_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DramBudget:
    """The arena's size, whole 2 MiB pages, and how it came about.

    `exceeds_available`: it was asked for, and the machine has not that much now.
    """

    bytes: int
    reason: str
    exceeds_available: bool = False


def read_memory_limits(root: Path = Path("/")) -> MemoryLimits:
    """What this process may use now. Raises OSError where /proc does not tell."""
    limits = _cgroup_limits(root)
    cgroup_bytes, file = min(limits) if limits else (None, "")
    return MemoryLimits(
        available_bytes=_available_bytes(root),
        free_hugetlb_bytes=_free_hugetlb_bytes(root),
        cgroup_bytes=cgroup_bytes,
        cgroup_file=file,
    )


def dram_budget(wanted_bytes: int | None, limits: MemoryLimits, *, hugetlb: bool) -> DramBudget:
    """What was wanted, or a share of what there is, for an arena of `hugetlb` pages or of any others.

    Raises BudgetTooLarge where the cgroup allows less than wanted; whether there are as many hugetlb pages shows when
    the arena is made, for they may be added before.
    """
    if wanted_bytes is None:
        return _most_of_hugetlb(limits) if hugetlb else _share_of(limits)
    granted_bytes = _whole_pages(wanted_bytes)
    reason = "as asked for"
    if granted_bytes != wanted_bytes:
        reason = f"the {wanted_bytes} bytes that were asked for, rounded to whole pages of 2 MiB"
    if hugetlb:
        return DramBudget(bytes=granted_bytes, reason=reason)
    _check_allowed(wanted_bytes, limits)
    exceeds_available = granted_bytes > limits.available_bytes
    if exceeds_available:
        reason += (
            f", although only {limits.available_bytes} bytes are available now: the kernel may end processes once "
            "loads have filled them; lower --dram-bytes"
        )
    return DramBudget(bytes=granted_bytes, reason=reason, exceeds_available=exceeds_available)


def _check_allowed(wanted_bytes: int, limits: MemoryLimits) -> None:
    allowed_bytes = _allowed_bytes(limits)
    if allowed_bytes is not None and wanted_bytes > allowed_bytes:
        raise BudgetTooLarge(
            f"a budget of {wanted_bytes} bytes does not fit: {limits.cgroup_file} allows {limits.cgroup_bytes} bytes, "
            f"{PROCESS_BYTES} of them are kept for the store's processes; lower --dram-bytes or raise that limit"
        )


def _most_of_hugetlb(limits: MemoryLimits) -> DramBudget:
    share = _share_of(limits)
    if limits.free_hugetlb_bytes <= share.bytes:
        return share
    return DramBudget(bytes=_whole_pages(limits.free_hugetlb_bytes), reason="all free hugetlb pages")


def _share_of(limits: MemoryLimits) -> DramBudget:
    allowed_bytes = _allowed_bytes(limits)
    source_bytes, source = limits.available_bytes, "bytes that are available on this machine"
    if allowed_bytes is not None and allowed_bytes < source_bytes:
        source_bytes, source = allowed_bytes, f"bytes that {limits.cgroup_file} allows"
    return DramBudget(
        bytes=_whole_pages(int(SHARE * source_bytes)), reason=f"{SHARE:.0%} of the {source_bytes} {source}"
    )


def _whole_pages(size_bytes: int) -> int:
    return max(PAGE_BYTES, size_bytes // PAGE_BYTES * PAGE_BYTES)


def _allowed_bytes(limits: MemoryLimits) -> int | None:
    return None if limits.cgroup_bytes is None else max(0, limits.cgroup_bytes - PROCESS_BYTES)


def _available_bytes(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kilobytes) * 1024


def _free_hugetlb_bytes(root: Path) -> int:
    return _number_in(root / "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", default=0) * PAGE_BYTES


def _cgroup_limits(root: Path) -> list[tuple[int, str]]:
    """Every limit on this process's memory, its own group's and those above it, with the file that says it."""
    files: list[Path] = []
    paths = _cgroup_paths(root)
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = (*file_system.split(), "", "")[:3]
        if kind == "cgroup2" and "" in paths:
            files += _files_up(root, mount, paths[""], "memory.max")
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in paths:
            files += _files_up(root, mount, paths["memory"], "memory.limit_in_bytes")
    limits = [(_number_in(file, default=_UNLIMITED_BYTES), f"/{file.relative_to(root)}") for file in files]
    return [limit for limit in limits if limit[0] < _UNLIMITED_BYTES]


def _cgroup_paths(root: Path) -> dict[str, str]:
    """This process's group by controller; that of cgroup v2 has the empty name."""
    entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    return {controller: path for _, controllers, path in entries for controller in controllers.split(",")}


def _files_up(root: Path, mount: str, path: str, name: str) -> list[Path]:
    """The file `name` of the group at `path` and of all above it, as far as the mount shows them."""
    _, _, _, shown, mount_point = mount.split()[:5]
    top = root / mount_point.lstrip("/")
    inside = PurePosixPath(path)
    # A container may see its own group as the root of the mount, under a name that only the host knows.
    relative = inside.relative_to(shown) if inside.is_relative_to(shown) else PurePosixPath()
    return [top / group / name for group in (relative, *relative.parents)]


def _number_in(file: Path, default: int) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max", or a group that this process cannot see
        return default
