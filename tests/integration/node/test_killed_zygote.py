"""A zygote that is killed, among real processes: its workers die with it, and on the next one all is as it was."""

from __future__ import annotations

import contextlib
import select
from pathlib import Path

import pytest

from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.model_config import render_config
from serverless_triton.backend.processes import ProcessHandle
from tests.integration.node.conftest import WAIT_S, Node

ENDLESS = 50_000_000
NOWHERE = "/nowhere/to/be/found"


@pytest.fixture(autouse=True)
def model_without_files(repository: Path) -> None:
    """One that every zygote which is to learn it complains of in its log."""
    folder = repository / "model-without-files"
    folder.mkdir()
    spec = ModelSpec(checkpoint=NOWHERE, checkpoint_bytes=1, kv_cache_bytes=1)
    (folder / "config.pbtxt").write_text(render_config(folder.name, spec))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_zygote(node: Node) -> None:
    """Returns when its workers have ended, too."""
    workers = []
    for pid in children_of(node.zygote.pid):
        with contextlib.suppress(ProcessLookupError):  # one that the pool has just replaced
            workers.append(ProcessHandle(pid))
    node.zygote.kill()
    node.zygote.wait()
    for worker in workers:
        assert select.select([worker], [], [], WAIT_S)[0], f"worker {worker.pid} outlives its zygote"
        worker.close()


def test_its_workers_die_with_it(node: Node, parameters: dict[str, str]):
    stub = node.stub("victim", parameters)
    stub.until(stub.ask(ENDLESS), 10)
    assert node.watcher.worker_of("victim") in children_of(node.zygote.pid)

    kill_zygote(node)

    stub.until_ended()
    node.watcher.until(lambda state: not any(replica.worker_pid for replica in state.replicas))
    node.watcher.until(lambda state: state.device_granted_bytes == 0)


def test_the_next_one_learns_the_models_again_and_the_next_request_works(
    node: Node, parameters: dict[str, str], tmp_path: Path
):
    def times_learned() -> int:
        return (tmp_path / "zygote.log").read_text().count(f"learn_failed checkpoint={NOWHERE}")

    assert times_learned() == 1
    kill_zygote(node)
    node.start_zygote()

    stub = node.stub("successor", parameters)
    stub.until(stub.ask(100), 100)

    assert times_learned() == 2
