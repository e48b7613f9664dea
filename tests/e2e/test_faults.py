"""Deaths in the middle of a stream: the client sees a pause, and every token exactly once."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import Heard
from tests.e2e.conftest import DRAM_BYTES

PROMPT = "Once upon a time, in a small harbour town,"
SAMPLING = {"max_tokens": 96, "ignore_eos": True}
HEARD_BEFORE = 20


@pytest.fixture(scope="module")
def uninterrupted(cluster: LocalCluster) -> Heard:
    """What any of the models says: all have one checkpoint."""
    heard = cluster.generate("alpha", PROMPT, **SAMPLING)
    assert heard.errors == []
    return heard


def kill_worker(cluster: LocalCluster, replica: dict[str, Any]) -> None:
    cluster.kill(replica["worker_pid"])


def kill_stub(cluster: LocalCluster, replica: dict[str, Any]) -> None:
    cluster.kill(replica["stub_pid"])


def kill_server(cluster: LocalCluster, replica: dict[str, Any]) -> None:
    cluster.kill(cluster.pid(f"{replica['server']}.triton"))


@pytest.mark.parametrize("fault", [kill_worker, kill_stub, kill_server])
def test_a_stream_outlives_its_replica(
    cluster: LocalCluster, uninterrupted: Heard, fault: Callable[[LocalCluster, dict[str, Any]], None]
) -> None:
    stream = cluster.stream("alpha", PROMPT, **SAMPLING)
    stream.read(HEARD_BEFORE)
    replica = cluster.serving("alpha")

    fault(cluster, replica)
    heard = stream.rest()

    assert heard.errors == []
    assert heard.output_ids == uninterrupted.output_ids
    assert heard.text == uninterrupted.text
    assert heard.finish_reason == "length"
    assert replica["id"] not in [r["id"] for r in cluster.replicas("alpha")]
    kinds = [receipt["kind"] for receipt in cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"]]
    assert "resumed" in kinds


def test_a_stream_outlives_a_worker_that_hangs(repository: Path, uninterrupted: Heard, tmp_path: Path) -> None:
    """A stopped process dies for nobody; its silence tells, and it is used no more."""
    with LocalCluster(tmp_path, repository, relay={"inactivity_timeout_s": 8.0}, dram_bytes=DRAM_BYTES) as cluster:
        stream = cluster.stream("alpha", PROMPT, **SAMPLING)
        stream.read(HEARD_BEFORE)
        replica = cluster.serving("alpha")

        cluster.kill(replica["worker_pid"], signal.SIGSTOP)
        heard = stream.rest()

        assert heard.errors == []
        assert heard.text == uninterrupted.text
        cluster.until(lambda: replica["id"] not in [r["id"] for r in cluster.replicas("alpha")], "it is given up")
        assert not Path(f"/proc/{replica['worker_pid']}/stat").exists()


def test_neighbours_of_a_killed_worker_notice_nothing(cluster: LocalCluster, uninterrupted: Heard) -> None:
    cluster.generate("alpha", PROMPT, max_tokens=1)
    neighbour = cluster.stream("beta", PROMPT, **SAMPLING)
    victim = cluster.stream("alpha", PROMPT, **SAMPLING)
    victim.read(HEARD_BEFORE)
    neighbour.read(HEARD_BEFORE)
    before = cluster.serving("beta")["id"]

    cluster.kill(cluster.serving("alpha")["worker_pid"])
    heard, disturbed = neighbour.rest(), victim.rest()

    assert heard.text == uninterrupted.text
    assert heard.errors == disturbed.errors == []
    assert before in [replica["id"] for replica in cluster.replicas("beta")]


def test_a_model_whose_stub_died_starts_again_on_the_same_server(cluster: LocalCluster) -> None:
    """Triton still calls the dead instance READY; nothing may be sent to it."""
    cluster.generate("gamma", PROMPT, max_tokens=1)
    (replica,) = cluster.replicas("gamma")
    cluster.kill(replica["stub_pid"])
    cluster.until(lambda: replica["id"] not in [r["id"] for r in cluster.replicas("gamma")], "the death is noticed")

    heard = cluster.generate("gamma", PROMPT, max_tokens=4, ignore_eos=True)

    assert heard.errors == []
    assert len(heard.output_ids) == 4


def test_streams_go_on_while_the_agent_restarts(cluster: LocalCluster) -> None:
    stream = cluster.stream("alpha", PROMPT, **SAMPLING)
    stream.read(HEARD_BEFORE)
    replica = cluster.serving("alpha")

    cluster.kill(cluster.pid(f"{replica['server']}.agent"))
    heard = stream.rest()

    assert heard.errors == []
    assert len(heard.output_ids) == SAMPLING["max_tokens"]
    cluster.until(lambda: cluster.servers_up() == 2, "the agent is back")
    cluster.until(lambda: replica["id"] in [r["id"] for r in cluster.replicas("alpha")], "the replica is adopted")
    assert cluster.serving("alpha")["worker_pid"] == replica["worker_pid"]


def test_a_scheduler_that_is_told_to_stop_lets_its_streams_end(cluster: LocalCluster) -> None:
    stream = cluster.stream("alpha", PROMPT, **SAMPLING)
    stream.read(HEARD_BEFORE)
    scheduler = cluster.pid("scheduler")

    cluster.kill(scheduler, signal.SIGTERM)
    heard = stream.rest()

    assert heard.errors == []
    assert (len(heard.output_ids), heard.finish_reason) == (SAMPLING["max_tokens"], "length")
    cluster.until(lambda: cluster.pid("scheduler") != scheduler, "the scheduler has ended and is restarted")
    cluster.until(lambda: cluster.servers_up() == 2, "the scheduler is back")


def test_a_new_scheduler_adopts_running_replicas(cluster: LocalCluster) -> None:
    cluster.generate("alpha", PROMPT, max_tokens=1)
    before = {replica["id"] for replica in cluster.replicas()}

    cluster.kill(cluster.pid("scheduler"))
    cluster.until(lambda: cluster.servers_up() == 2, "the scheduler is back")
    cluster.until(lambda: {replica["id"] for replica in cluster.replicas()} == before, "the replicas are adopted")
    heard = cluster.generate("alpha", PROMPT, max_tokens=4, ignore_eos=True)

    assert heard.errors == []
    assert {replica["id"] for replica in cluster.replicas("alpha")} <= before


def test_starts_go_on_after_the_store_restarts(cluster: LocalCluster) -> None:
    for name in ("server-0.store", "server-1.store"):
        cluster.kill(cluster.pid(name))

    heard = [cluster.generate(model, PROMPT, max_tokens=2, ignore_eos=True) for model in ("delta", "gamma", "beta")]

    assert [h.errors for h in heard] == [[], [], []]


def test_no_prompt_text_in_any_log(cluster: LocalCluster) -> None:
    secret = "xyzzy-plugh-prompt"
    cluster.generate("alpha", f"{secret}: tell me", max_tokens=4)
    bad = cluster.stream("alpha", secret, max_tokens="many").rest()
    assert bad.errors
    texts = {file.name: file.read_text(errors="replace") for file in cluster.logs.glob("*.log")}
    assert texts
    assert [name for name, text in texts.items() if secret in text] == []
    assert json.dumps(cluster.status()).count(secret) == 0
