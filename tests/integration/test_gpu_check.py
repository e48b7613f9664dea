"""perf.gpu_check from end to end, with a tiny checkpoint, on the driver that the environment names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "perf.gpu_check", "--shape", "tiny", "--rounds", "1"]


@pytest.mark.usefixtures("cuda_driver")
def test_every_way_onto_the_device_is_measured_and_ends_with_the_same_bytes() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stderr
    file = ROOT / done.stdout.rpartition("written to ")[2].strip()
    (round_,) = json.loads(file.read_text())["rounds"]
    file.unlink()
    measured = round_["measurements"]
    assert measured.keys() == {
        "pinned copy",
        "ours, DRAM",
        "ours, SSD",
        "ours, swap back",
        "load_file, SSD",
        "safetensors, page cache",
        "safetensors, SSD",
    }
    assert all(each["figures"]["load_bytes_per_s"] > 0 for each in measured.values())
    assert len({each["details"]["sum"] for name, each in measured.items() if name != "pinned copy"}) == 1


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERLESS_TRITON_CUDA_DRIVER", "/nowhere/libcuda.so.1")

    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 1
    assert "there is no GPU here that could be measured" in done.stderr
