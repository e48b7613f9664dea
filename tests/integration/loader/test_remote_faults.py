"""Full disks and killed processes: the SSD cache never serves what is not whole, and never ends a load."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import StoreError
from serverless_triton.loader.remote.ssd_cache import SsdCache
from tests.integration.loader.file_server import FileServer, serving_files
from tests.integration.loader.remote_samples import Tier, cached_bytes, checkpoint_bytes, digest

ROOT = Path(__file__).parent.parent.parent.parent
PATH = "/models/a/model.safetensors"
LOAD = (
    "import resource, sys\nfrom pathlib import Path\n"
    "from serverless_triton.loader.remote import partial_entry\n"
    "from tests.integration.loader.remote_samples import Tier, digest, quick\n"
    "partial_entry.FLUSH_BYTES = 1\n"  # every chunk for itself, so that a kill hits the journal too
    "tier = Tier(Path(sys.argv[2]), settings=quick(concurrency=2))\n"
    "load, limit_bytes = tier.loader.load, int(sys.argv[3])\n"
    "def limited(*arguments, **options):\n"  # once the arena is there, which is a file too
    "    if limit_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))\n"
    "    return load(*arguments, **options)\n"
    "tier.loader.load = limited\n"
    "[content], result = tier.load(sys.argv[1])\ntier.settle()\n"
    "print(digest(content), result.tier, tier.cache.status.problem)\n"
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as files:
        files.files[PATH] = checkpoint_bytes(6 * CHUNK_BYTES + 123)
        yield files


def start_load(server: FileServer, cache: Path, *, file_limit_bytes: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LOAD, server.url(PATH), str(cache), str(file_limit_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two chunks and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={CHUNK_BYTES * 5 // 2}", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_caching_and_not_the_load(server: FileServer, small_disk: Path):
    tier = Tier(small_disk / "cache")
    contents, result = tier.load(server.url(PATH))
    tier.settle()
    assert contents == [server.files[PATH]]
    assert result.tier == "remote"
    assert tier.cache is not None
    assert "No space left" in tier.cache.status.problem
    assert tier.opener.open(server.url(PATH)).is_remote
    assert not list((small_disk / "cache" / "partial").iterdir()), "what cannot be completed takes no room"
    tier.close()


def test_a_file_that_may_not_grow_ends_the_caching_and_not_the_load(server: FileServer, tmp_path: Path):
    with start_load(server, tmp_path / "cache", file_limit_bytes=2 * CHUNK_BYTES) as process:
        output = process.communicate(timeout=60)[0]
    assert output.startswith(f"{digest(server.files[PATH])} remote stopped caching")


def test_a_directory_that_cannot_be_written_is_said_at_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="--cache-dir"):
        SsdCache(tmp_path / "file" / "cache", 1000)


def test_two_stores_do_not_share_a_cache(tmp_path: Path):
    first = SsdCache(tmp_path, 1000)
    with pytest.raises(StoreError, match="another store"):
        SsdCache(tmp_path, 1000)
    first.close()
    SsdCache(tmp_path, 1000).close()


def test_killed_at_any_moment_nothing_half_written_is_served_and_the_rest_is_fetched(
    server: FileServer, tmp_path: Path
):
    server.bytes_per_second = 60_000_000
    whole = server.files[PATH]
    for round_number in range(8):
        process = start_load(server, tmp_path / "cache")
        while not server.ranges(PATH) and process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.15 + 0.1 * round_number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.requests.clear()
        assert_only_whole_copies(tmp_path / "cache", server.url(PATH), whole)
    with start_load(server, tmp_path / "cache") as process:
        assert process.communicate(timeout=60)[0].startswith(digest(whole))
    tier = Tier(tmp_path / "cache")
    assert cached_bytes(tier.opener.open(server.url(PATH))) == [whole]
    tier.close()


def assert_only_whole_copies(directory: Path, url: str, whole: bytes) -> None:
    """A store that starts now serves the copy whole or not at all."""
    cache = SsdCache(directory, 1 << 30)
    checkpoint = cache.newest(url)
    if checkpoint is not None:
        assert cached_bytes(checkpoint) == [whole]
    assert [entry.stat().st_mode & 0o777 for entry in (directory / "entries").iterdir()] in ([], [0o700])
    cache.close()
