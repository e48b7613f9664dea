"""`serverless-triton store`: the command as a person runs it, against a real daemon."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader import ImagePinned, Store

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = [sys.executable, "-m", "serverless_triton.cli", "store"]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def answer(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A store started by the command, with metrics; its socket and the address of its metrics."""
    socket, log = tmp_path / "s", tmp_path / "log"
    options = ["--socket", str(socket), "--dram-bytes", str(1 << 30), "--metrics-port", "0"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*COMMAND, "serve", *options], stderr=stderr)
    try:
        with Store(socket, connect_timeout_s=20) as store:
            store.status()
        address = re.search(r"http://\S+", log.read_text())
        assert address is not None
        yield socket, address.group()
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_a_checkpoint_s_way_from_disk_to_memory(
    served: tuple[Path, str], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    socket, metrics = served
    packed = tmp_path / "packed"
    assert answer("repack", make_checkpoint(), packed)["files"] == 1
    assert answer("verify", packed) == answer("hash", packed)

    estimated = answer("estimate", packed, "--socket", socket)
    assert (estimated["tier"] in ("ssd", "page_cache"), estimated["queue_s"]) == (True, 0)
    receipt = answer("load", packed, "--socket", socket)
    assert (receipt["tier"] in ("ssd", "page_cache"), receipt["verified"]) == (True, True)
    assert answer("pin", packed, "--socket", socket)["tier"] == "dram"
    assert answer("estimate", packed, "--socket", socket)["tier"] == "dram"
    image = answer("status", "--socket", socket)["images"][0]
    assert (image["pinned"], image["leases"], image["state"]) == (True, 0, "ready")

    refused = run("evict", packed, "--socket", socket)
    assert refused.returncode == 1
    assert refused.stderr == f"serverless-triton: {packed} is pinned; unpin it, then evict it again\n"
    with urllib.request.urlopen(metrics, timeout=10) as response:
        scraped = response.read().decode()
    assert "serverless_triton_store_pinned_images 1.0\n" in scraped
    assert 'serverless_triton_store_loads_total{outcome="loaded",tier="dram"} 1.0\n' in scraped

    assert answer("unpin", packed, "--socket", socket) == {"unpinned": 1}
    assert answer("evict", packed, "--socket", socket) == {"evicted": 1}


def test_plain_lines_for_people(served: tuple[Path, str], make_checkpoint: Callable[..., Path]) -> None:
    socket, _ = served
    directory = make_checkpoint()

    assert run("hash", directory).stdout == "hashed 1 file of 4.2 MB\n"
    assert "every byte is as it was hashed" in run("verify", directory).stdout
    assert "loading" in run("prefetch", directory, "--socket", socket).stdout
    assert str(directory) in run("load", directory, "--socket", socket).stdout
    assert "in the queue" in run("estimate", directory, "--socket", socket).stdout
    assert f"{directory}: ready, 4.2 MB, 0 leases" in run("status", "--socket", socket).stdout


def test_a_broken_chunk_is_one_clear_line(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    answer("hash", directory)
    shard = directory / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    done = run("verify", directory)
    assert done.returncode == 1
    assert re.fullmatch(rf"serverless-triton: {shard}: chunk 0 \(bytes 0 to \d+\), .*\n", done.stderr)


def test_hashes_that_show_damage_are_replaced_by_force_alone(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    answer("hash", directory)
    with (directory / "model.safetensors").open("r+b") as shard:
        shard.seek(-1, 2)
        shard.write(b"\xa5")

    assert run("hash", directory).returncode == 1
    assert run("verify", directory).returncode == 1
    assert run("hash", directory, "--force").returncode == 0
    assert run("verify", directory).returncode == 0


def test_a_failure_is_json_where_the_answer_would_be(tmp_path: Path) -> None:
    done = run("verify", tmp_path / "nothing", "--json")

    assert (done.returncode, done.stdout) == (1, "")
    failure = json.loads(done.stderr)
    assert (failure["error"], str(tmp_path / "nothing") in failure["message"]) == ("CheckpointNotFound", True)


def test_what_is_not_in_the_store_is_said(served: tuple[Path, str], tmp_path: Path) -> None:
    socket, _ = served
    path = tmp_path / "nothing"

    evicted, unpinned = (run(verb, path, "--socket", socket) for verb in ("evict", "unpin"))

    assert (evicted.returncode, evicted.stdout) == (0, f"no image of {path} is in the store\n")
    assert (unpinned.returncode, unpinned.stdout) == (0, f"no image of {path} is pinned\n")
    assert run("evict", "", "--socket", socket).returncode == 1


def test_help_has_no_cut_sentences() -> None:
    commands = run("--help").stdout.partition("Commands:")[2]

    assert "..." not in commands
    assert all(line.endswith(".") for line in commands.splitlines() if line.strip())


def test_cache_options_are_named_where_one_is_missing(tmp_path: Path) -> None:
    done = run("serve", "--socket", tmp_path / "s", "--cache-bytes", "5")

    assert done.returncode == 2
    assert "--cache-dir and --cache-bytes" in done.stderr


def test_a_missing_store_and_a_missing_option_are_said(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    said = run("status", "--socket", missing).stderr
    assert "no store answers" in said
    assert f"`serverless-triton store serve --socket {missing}`" in said
    assert run("status").returncode == 2
    too_long = run("serve", "--socket", tmp_path / ("x" * 107), "--dram-bytes", "1")
    assert (too_long.returncode, "longer than" in too_long.stderr) == (2, True)


def test_pins_survive_the_client_and_hold_the_image(store: Store, daemon: Any, make_checkpoint: Any) -> None:
    directory = make_checkpoint()
    with daemon.connect() as client:
        client.pin(directory)
    while store.status().images[0].state != "ready":
        time.sleep(0.01)

    with pytest.raises(ImagePinned, match=str(directory)):
        store.evict(directory)
    assert store.load(directory).tier == "dram"
    assert (store.unpin(directory), store.unpin(directory)) == (1, 0)
    assert store.evict(directory) == 1


def test_an_estimate_comes_true_on_a_throttled_store(start_daemon: Any, make_checkpoint: Any) -> None:
    directory = make_checkpoint(megabytes=8)
    with start_daemon("--ssd-bytes-per-second", str(16 << 20)).connect() as store:
        estimate = store.estimate(directory)
        receipt = store.load(directory)

    assert (estimate.tier, estimate.is_measured) == ("ssd", True)
    assert 0.5 <= estimate.total_s < 0.51
    assert receipt.read_s == pytest.approx(estimate.total_s, rel=0.5)


def test_a_taken_metrics_port_is_said(served: tuple[Path, str], tmp_path: Path) -> None:
    port = served[1].split(":")[2].split("/")[0]
    done = run("serve", "--socket", tmp_path / "other", "--dram-bytes", "1", "--metrics-port", port)

    assert done.returncode == 1
    assert f"cannot serve metrics on port {port}" in done.stderr
