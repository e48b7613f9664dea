"""The images' install steps, on this host."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["scheduler", "server"])
def test_the_images_install_steps_work(part: str):
    finished = subprocess.run(
        [ROOT / "docker" / "check_install.sh", part], capture_output=True, text=True, check=False, timeout=900
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert f"{part}: ok" in finished.stdout
