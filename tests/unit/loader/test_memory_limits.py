"""Limits read from a made-up /proc and /sys; budgets decided from made-up limits."""

from pathlib import Path

import pytest

from serverless_triton.loader import BudgetTooLarge
from serverless_triton.loader.memory_limits import PROCESS_BYTES, MemoryLimits, dram_budget, read_memory_limits

GIB = 1 << 30
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 20 GiB available and no cgroups."""
    return write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: 1 kB\nMemFree: 2 kB\nMemAvailable:   {20 * GIB // 1024} kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "23 1 0:22 / / rw - ext4 /dev/vda rw\n",
        },
    )


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(content))
    return root


def test_without_cgroups_only_the_machine_limits(root: Path) -> None:
    assert read_memory_limits(root) == MemoryLimits(available_bytes=20 * GIB, free_hugetlb_bytes=0)


def test_the_lowest_limit_on_the_way_up_counts_in_cgroup_v2(root: Path) -> None:
    groups = {"a/b/c/memory.max": "max\n", "a/b/memory.max": f"{4 * GIB}\n", "a/memory.max": f"{8 * GIB}\n"}
    write(root, {"proc/self/cgroup": "0::/a/b/c\n", "proc/self/mountinfo": V2_MOUNT})
    write(root / "sys/fs/cgroup", groups)

    limits = read_memory_limits(root)

    assert (limits.cgroup_bytes, limits.cgroup_file) == (4 * GIB, "/sys/fs/cgroup/a/b/memory.max")


def test_cgroup_v1_is_read_where_its_memory_controller_is_mounted(root: Path) -> None:
    groups = {"job/memory.limit_in_bytes": f"{2 * GIB}\n", "memory.limit_in_bytes": "9223372036854771712\n"}
    write(root, {"proc/self/cgroup": "4:memory:/job\n1:cpu:/elsewhere\n0::/\n", "proc/self/mountinfo": V1_MOUNT})
    write(root / "sys/fs/cgroup/memory", groups)

    limits = read_memory_limits(root)

    assert (limits.cgroup_bytes, limits.cgroup_file) == (2 * GIB, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes")


def test_unlimited_groups_are_no_limit(root: Path) -> None:
    write(root, {"proc/self/cgroup": "4:memory:/\n0::/\n", "proc/self/mountinfo": V1_MOUNT + V2_MOUNT})
    write(root / "sys/fs/cgroup", {"memory/memory.limit_in_bytes": 9223372036854771712, "memory.max": "max\n"})

    assert read_memory_limits(root).cgroup_bytes is None


def test_a_container_s_group_is_the_root_of_what_it_sees(root: Path) -> None:
    mount = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    write(root, {"proc/self/cgroup": "0::/docker/abc\n", "proc/self/mountinfo": mount})
    write(root / "sys/fs/cgroup", {"memory.max": GIB})

    assert read_memory_limits(root).cgroup_bytes == GIB


def test_a_group_that_only_the_host_can_name_is_the_root_of_the_mount(root: Path) -> None:
    mount = V1_MOUNT.replace(" / /sys", " /docker/abc /sys")
    write(root, {"proc/self/cgroup": "4:memory:/somewhere/else\n", "proc/self/mountinfo": mount})
    write(root / "sys/fs/cgroup/memory", {"memory.limit_in_bytes": GIB})

    assert read_memory_limits(root).cgroup_bytes == GIB


def test_free_hugetlb_pages_are_counted(root: Path) -> None:
    write(root, {"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "3\n"})

    assert read_memory_limits(root).free_hugetlb_bytes == 3 * (2 << 20)


def test_this_machine_can_be_read() -> None:
    assert read_memory_limits().available_bytes > 0


def limits(cgroup_bytes: int | None = None, hugetlb_bytes: int = 0) -> MemoryLimits:
    return MemoryLimits(
        available_bytes=20 * GIB, free_hugetlb_bytes=hugetlb_bytes, cgroup_bytes=cgroup_bytes, cgroup_file="/the/limit"
    )


def test_without_a_wish_half_of_what_is_there_is_taken_and_said() -> None:
    budget = dram_budget(None, limits(), hugetlb=False)

    assert budget.bytes == 10 * GIB
    assert budget.reason == f"50% of the {20 * GIB} bytes that are available on this machine"


def test_without_a_wish_half_of_what_the_cgroup_allows_is_taken() -> None:
    budget = dram_budget(None, limits(4 * GIB), hugetlb=False)

    assert budget.bytes == (4 * GIB - PROCESS_BYTES) // 2
    assert "/the/limit allows" in budget.reason


def test_without_a_wish_pages_that_the_machine_keeps_are_all_taken_for_an_arena_of_them() -> None:
    assert dram_budget(None, limits(4 * GIB, 12 * GIB), hugetlb=True).bytes == 12 * GIB


def test_without_a_wish_pages_that_the_machine_keeps_are_nothing_to_an_arena_of_others() -> None:
    few, many = limits(16 * GIB), limits(16 * GIB, 200 * GIB)

    assert dram_budget(None, many, hugetlb=False) == dram_budget(None, few, hugetlb=False)


def test_a_wish_above_the_cgroup_s_limit_is_refused_with_both_numbers() -> None:
    with pytest.raises(BudgetTooLarge, match=f"{4 * GIB} bytes .* /the/limit allows {4 * GIB} bytes"):
        dram_budget(4 * GIB, limits(4 * GIB), hugetlb=False)


def test_a_wish_within_the_cgroup_s_limit_is_granted() -> None:
    assert dram_budget(4 * GIB - PROCESS_BYTES, limits(4 * GIB), hugetlb=False).bytes == 4 * GIB - PROCESS_BYTES


@pytest.mark.parametrize("free_bytes", [0, 4 * GIB])
def test_hugetlb_pages_are_not_the_cgroup_s_to_limit_also_where_they_are_yet_to_come(free_bytes: int) -> None:
    assert dram_budget(4 * GIB, limits(GIB, free_bytes), hugetlb=True).bytes == 4 * GIB


def test_hugetlb_pages_let_no_other_arena_exceed_the_cgroup_s_limit() -> None:
    with pytest.raises(BudgetTooLarge, match="/the/limit"):
        dram_budget(4 * GIB, limits(GIB, 4 * GIB), hugetlb=False)


@pytest.mark.parametrize("hugetlb_bytes", [0, 40 * GIB])
def test_a_wish_above_what_is_available_is_granted_and_said(hugetlb_bytes: int) -> None:
    budget = dram_budget(30 * GIB, limits(hugetlb_bytes=hugetlb_bytes), hugetlb=False)

    assert budget.bytes == 30 * GIB
    assert budget.exceeds_available
    assert f"only {20 * GIB} bytes are available" in budget.reason
    assert "lower --dram-bytes" in budget.reason


@pytest.mark.parametrize("hugetlb", [True, False])
@pytest.mark.parametrize(("wanted", "granted"), [(1, 2 << 20), (5 << 20, 4 << 20)])
def test_a_budget_is_whole_pages_and_at_least_one(wanted: int, granted: int, hugetlb: bool) -> None:
    budget = dram_budget(wanted, limits(), hugetlb=hugetlb)

    assert (budget.bytes, budget.exceeds_available) == (granted, False)
    assert f"{wanted} bytes that were asked for, rounded" in budget.reason
