"""Clients that the store cannot take as they come: out of its sight, or one too many."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader import ProcessUnwatchable, Store
from tests.integration.loader.test_store import eventually

Daemon = Any


def test_a_client_that_the_store_cannot_see_is_told_what_to_do(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no new pid namespaces here")
    command = [sys.executable, "-m", "serverless_triton.loader.daemon", "--socket", str(tmp_path / "store")]
    with subprocess.Popen([*alone, *command, "--dram-bytes", str(16 << 20)], stderr=subprocess.DEVNULL) as process:
        try:
            with Store(tmp_path / "store", connect_timeout_s=20) as store:
                for _ in range(2):
                    with pytest.raises(ProcessUnwatchable, match="pid namespace"):
                        store.attach(make_checkpoint())
        finally:
            process.kill()


def test_clients_beyond_the_limit_of_open_files_wait_and_cost_nothing(daemon: Daemon) -> None:
    with daemon.connect() as store:
        store.status()
        child = daemon.child()
        opened = {int(entry.name) for entry in Path(f"/proc/{child}/fd").iterdir()}
        usual = resource.prlimit(child, resource.RLIMIT_NOFILE)
        lowest_free = next(number for number in count() if number not in opened)
        resource.prlimit(child, resource.RLIMIT_NOFILE, (lowest_free, usual[1]))
        with daemon.connect() as another:
            eventually(lambda: "cannot accept a client" in daemon.log.read_text())
            time.sleep(0.5)
            assert daemon.log.read_text().count("cannot accept a client") < 10
            assert store.status().images == ()
            resource.prlimit(child, resource.RLIMIT_NOFILE, usual)

            assert another.status().images == ()


def test_a_client_of_another_user_is_told_whose_the_store_is(daemon: Daemon, store: Store) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    store.status()
    daemon.socket.chmod(0o666)
    daemon.socket.parent.chmod(0o755)
    code = (
        "import os, sys\nfrom serverless_triton.loader import Store, UserRefused\n"
        "os.chdir(sys.argv[1])\nos.seteuid(65534)\n"
        "for _ in range(2):\n"
        "    try:\n        Store('store').status()\n    except UserRefused as error:\n        print(error)\n"
    )
    command = [sys.executable, "-c", code, str(daemon.socket.parent)]
    printed = subprocess.check_output(command, text=True, timeout=60).splitlines()

    assert len(printed) == 2
    assert "serves user 0" in printed[0]
    assert "not user 65534" in printed[0]
