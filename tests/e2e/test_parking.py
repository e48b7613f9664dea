"""Parked models: the stub stays READY in a real Triton, the engine and its memory leave and come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import generation_inputs
from tests.e2e.conftest import DRAM_BYTES, ROOM_FOR_ONE

PROMPT = "The three primary colours are"
TOKENS = {"max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One server with room for one replica, whose Triton keeps two parked stubs."""
    with LocalCluster(
        tmp_path_factory.mktemp("parking"),
        repository,
        servers=1,
        control={"max_parked_per_server": 2},
        device_memory_bytes=ROOM_FOR_ONE,
        dram_bytes=DRAM_BYTES,
    ) as running:
        yield running


def start_of(cluster: LocalCluster, model: str) -> tuple[str, list[int], str]:
    """What the model says, and the kind of start that it took."""
    heard = cluster.generate(model, PROMPT, **TOKENS)
    assert heard.errors == []
    receipt = cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"][0]
    tiled_s = sum(segment["duration_s"] for segment in receipt["critical_path"])
    assert tiled_s == pytest.approx(receipt["actual_s"], abs=1e-6)
    return heard.text, heard.output_ids, receipt["kind"]


def park(cluster: LocalCluster, model: str, other: str) -> dict[str, Any]:
    """Another model takes the room; returns the stub that is left."""
    start_of(cluster, model)
    stub_pid = cluster.serving(model)["stub_pid"]
    start_of(cluster, other)
    cluster.until(lambda: bool(cluster.parked(model)), f"{model} is parked")
    (stub,) = cluster.parked(model)
    assert stub["stub_pid"] == stub_pid
    return stub


def processes(cluster: LocalCluster, model: str) -> list[int]:
    """The stubs that are parked for a model; what memory each holds is measured anew, and may differ by a page."""
    return [stub["stub_pid"] for stub in cluster.parked(model)]


def test_a_model_that_made_room_starts_again_on_its_stub(cluster: LocalCluster) -> None:
    text, ids, _ = start_of(cluster, "alpha")
    stub = park(cluster, "alpha", "beta")
    assert start_of(cluster, "alpha") == (text, ids, "parked")
    assert cluster.serving("alpha")["stub_pid"] == stub["stub_pid"]
    assert cluster.parked("alpha") == []
    assert start_of(cluster, "beta")[2] == "parked"


def test_parked_models_hold_no_worker(cluster: LocalCluster) -> None:
    start_of(cluster, "alpha")
    worker = cluster.serving("alpha")["worker_pid"]
    park(cluster, "alpha", "beta")
    assert not Path(f"/proc/{worker}").exists()


def test_a_request_that_triton_sends_to_a_parked_stub_is_unavailable_and_says_why(cluster: LocalCluster) -> None:
    park(cluster, "alpha", "beta")
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as client:
        assert client.is_model_ready("alpha", headers=cluster.triton_headers())
        with pytest.raises(InferenceServerException) as caught:
            direct(client, "alpha", cluster.triton_headers())
    assert "UNAVAILABLE" in str(caught.value.status())
    assert "the engine worker of model 'alpha' is gone" in caught.value.message()


def direct(client: Any, model: str, headers: dict[str, str]) -> None:
    """One request to Triton itself, asked to keep an error's code; raises its error."""
    answers: list[Any] = []
    client.start_stream(lambda result, error: answers.append(error), headers={"triton_grpc_error": "true", **headers})
    client.async_stream_infer(model, generation_inputs(PROMPT, stream=False))
    client.stop_stream()
    for error in answers:
        if error is not None:
            raise error


def test_a_parked_stub_outlives_the_agent(cluster: LocalCluster) -> None:
    stub = park(cluster, "alpha", "beta")
    agent = cluster.pid("server-0.agent")
    cluster.kill(agent)
    cluster.until(lambda: cluster.pid("server-0.agent") != agent, "the agent is restarted")
    cluster.until(lambda: cluster.servers_up() == 1, "the agent is back")
    cluster.until(lambda: processes(cluster, "alpha") == [stub["stub_pid"]], "the stub is known again")
    cluster.until(lambda: bool(cluster.replicas("beta")), "the replica is adopted")
    assert start_of(cluster, "alpha")[2] == "parked"


def test_a_parked_stub_outlives_the_scheduler(cluster: LocalCluster) -> None:
    stub = park(cluster, "alpha", "beta")
    cluster.kill(cluster.pid("scheduler"))
    cluster.until(lambda: cluster.servers_up() == 1, "the scheduler is back")
    cluster.until(lambda: processes(cluster, "alpha") == [stub["stub_pid"]], "the stub is known again")
    assert start_of(cluster, "alpha")[2] == "parked"


def test_a_dead_workers_stub_takes_the_next_engine(cluster: LocalCluster) -> None:
    start_of(cluster, "alpha")
    replica = cluster.serving("alpha")
    cluster.kill(replica["worker_pid"])
    cluster.until(lambda: bool(cluster.parked("alpha")), "its stub is parked")
    assert start_of(cluster, "alpha")[2] == "parked"
    assert cluster.serving("alpha")["stub_pid"] == replica["stub_pid"]


def test_a_parked_stub_that_died_is_not_waited_for(cluster: LocalCluster) -> None:
    stub = park(cluster, "alpha", "beta")
    cluster.kill(stub["stub_pid"])
    cluster.until(lambda: cluster.parked("alpha") == [], "its death is noticed")
    assert start_of(cluster, "alpha")[2] == "cold"


def test_of_too_many_parked_stubs_the_oldest_leaves_triton(cluster: LocalCluster) -> None:
    for model in ("alpha", "beta", "gamma", "delta"):
        start_of(cluster, model)
    cluster.until(lambda: [stub["model"] for stub in cluster.parked()] == ["beta", "gamma"], "two are parked")
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as client:
        headers = cluster.triton_headers()
        cluster.until(lambda: not client.is_model_ready("alpha", headers=headers), "the oldest is unloaded")
    assert start_of(cluster, "alpha")[2] == "cold"


def test_an_unload_leaves_no_parked_stub(cluster: LocalCluster) -> None:
    stub = park(cluster, "alpha", "beta")
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.unload_model("alpha")
    cluster.until(lambda: not Path(f"/proc/{stub['stub_pid']}").exists(), "its stub has ended")
    assert cluster.parked("alpha") == []


def test_a_model_that_nobody_asks_for_is_parked(repository: Path, tmp_path: Path) -> None:
    with LocalCluster(tmp_path, repository, servers=1, control={"keep_alive_s": 0.5}, dram_bytes=DRAM_BYTES) as cluster:
        text, ids, _ = start_of(cluster, "alpha")
        cluster.until(lambda: cluster.replicas("alpha") == [] and bool(cluster.parked("alpha")), "it is parked")
        assert start_of(cluster, "alpha") == (text, ids, "parked")


def test_the_memory_that_a_parked_stub_holds_is_known(cluster: LocalCluster) -> None:
    stub = park(cluster, "alpha", "beta")
    cluster.until(lambda: cluster.parked("alpha")[0]["private_bytes"] > 0, "its memory has been told")
    assert 4 << 20 < cluster.parked("alpha")[0]["private_bytes"] < 256 << 20
    assert stub["model"] == "alpha"
