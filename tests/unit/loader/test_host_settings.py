"""Settings of a made-up machine; those of the real one are never touched."""

import os
from pathlib import Path

import pytest

from serverless_triton.loader import HostNotConfigurable
from serverless_triton.loader.host_settings import SettingChange, configure_host, hugetlb_shortage

HUGE = "sys/kernel/mm/hugepages/hugepages-2048kB"
SHMEM = "sys/kernel/mm/transparent_hugepage/shmem_enabled"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine that keeps five 2 MiB pages, two of them free, and gives shared memory no large ones."""
    for name, content in {
        f"{HUGE}/nr_hugepages": "5\n",
        f"{HUGE}/free_hugepages": "2\n",
        SHMEM: "always within_size advise [never] deny force\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize("pages", ["auto", "hugetlb"])
def test_as_many_pages_are_kept_as_the_arena_lacks(root: Path, pages: str) -> None:
    changes = configure_host(pages, (8 << 20) + 1, root)

    assert changes == (SettingChange(file=str(root / HUGE / "nr_hugepages"), old="5", new="8"),)
    assert (root / HUGE / "nr_hugepages").read_text() == "8"


def test_where_enough_pages_are_free_nothing_changes(root: Path) -> None:
    assert configure_host("auto", 4 << 20, root) == ()
    assert (root / HUGE / "nr_hugepages").read_text() == "5\n"


def test_shared_memory_may_take_large_pages_where_it_could_not(root: Path) -> None:
    changes = configure_host("memfd", 8 << 20, root)

    assert changes == (SettingChange(file=str(root / SHMEM), old="never", new="advise"),)
    assert (root / SHMEM).read_text() == "advise"


@pytest.mark.parametrize("setting", ["[always] never", "always [within_size] never", "always [advise] never"])
def test_a_setting_that_allows_large_pages_stays(root: Path, setting: str) -> None:
    (root / SHMEM).write_text(setting)

    assert configure_host("memfd", 8 << 20, root) == ()
    assert (root / SHMEM).read_text() == setting


@pytest.mark.parametrize("pages", ["tmpfs", "4k"])
def test_pages_that_need_no_setting_change_none(root: Path, pages: str) -> None:
    before = {file: file.read_text() for file in root.rglob("*") if file.is_file()}

    assert configure_host(pages, 1 << 30, root) == ()

    assert {file: file.read_text() for file in root.rglob("*") if file.is_file()} == before


def test_pages_that_the_kernel_gave_too_few_of_are_given_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / HUGE / "nr_hugepages"
    written: list[str] = []

    def write_at_most_six(self: Path, text: str) -> int:
        written.append(text)
        with self.open("w") as stream:
            return stream.write(str(min(6, int(text))))

    monkeypatch.setattr(Path, "write_text", write_at_most_six)

    with pytest.raises(HostNotConfigurable, match="gave 1 of 3 pages"):
        configure_host("hugetlb", 10 << 20, root)

    assert written == ["8", "5"]
    assert file.read_text() == "5"


def test_a_machine_without_such_a_setting_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostNotConfigurable, match="does not have that setting"):
        configure_host("auto", 1 << 20, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_setting_that_may_not_be_written_is_said(root: Path) -> None:
    (root / HUGE / "nr_hugepages").chmod(0o400)

    with pytest.raises(HostNotConfigurable, match="run as root"):
        configure_host("auto", 1 << 30, root)


def test_what_an_arena_lacks_is_said_with_every_way_out(root: Path) -> None:
    text = hugetlb_shortage(10 << 20, root)

    assert "2 pages of 2 MiB are free, 5 are needed" in text
    assert all(way in text for way in ("nr_hugepages", "--configure-host", "--pages auto"))
