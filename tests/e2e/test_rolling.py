"""Models that change or go while they serve, on a real Triton; the engine computes nothing, at a rate that is told."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serverless_triton.backend.model_repository import EngineLimits, add_model, add_version
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import GrpcStream, Heard, generation_inputs
from tests.e2e.conftest import DRAM_BYTES

PROMPT = "The capital of France is"
LIMITS = {"engine": "fake", "max_sequence_tokens": 512, "max_streams": 2}


class Rolling(LocalCluster):
    """One server, with room for every replica."""

    checkpoint: Path

    def define(self, model: str, **options: Any) -> None:
        limits = EngineLimits(engine_options=json.dumps({"tokens_per_s": 20.0, **options}), **LIMITS)  # type: ignore[arg-type]
        add_model(self.repository, model, self.checkpoint, limits=limits, replace=True)

    def running(self, model: str) -> dict[str, dict[str, Any]]:
        """By definition."""
        return {replica["definition"]: replica for replica in self.replicas(model)}

    def begun(self, model: str, tokens: int) -> GrpcStream:
        """A stream that has said something; it lasts a second for every 20 tokens."""
        stream = self.stream(model, PROMPT, max_tokens=tokens, ignore_eos=True)
        stream.read(2)
        return stream

    def index(self, model: str) -> Any:
        with triton_grpc.InferenceServerClient(self.grpc) as client:
            (found,) = [one for one in client.get_model_repository_index().models if one.name == model]
        return found


@pytest.fixture(scope="module")
def cluster(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolling]:
    root = tmp_path_factory.mktemp("models")
    rolling = Rolling(tmp_path_factory.mktemp("rolling"), root, servers=1, dram_bytes=DRAM_BYTES)
    rolling.checkpoint = demo_model
    for name in ("changed", "asked", "loaded", "broken", "gone", "versions"):
        rolling.define(name)
    with rolling:
        yield rolling


def ended(heard: Heard, tokens: int) -> bool:
    return (heard.errors, heard.finish_reason, len(heard.output_ids)) == ([], "length", tokens)


def test_a_changed_model_is_replaced_under_its_streams(cluster: Rolling) -> None:
    stream = cluster.begun("changed", 80)
    (old,) = cluster.running("changed")
    cluster.define("changed", load_s=0.1)
    cluster.until(lambda: len(cluster.running("changed")) == 2, "the new definition starts beside the old one")
    cluster.until(lambda: cluster.running("changed")[old]["retiring"], "the new one has taken over")
    (new,) = cluster.running("changed").keys() - {old}
    second = cluster.begun("changed", 20)
    assert (cluster.running("changed")[old]["streams"], cluster.running("changed")[new]["streams"]) == (1, 1)
    assert ended(second.rest(), 20)
    assert ended(stream.rest(), 80)
    cluster.until(lambda: set(cluster.running("changed")) == {new}, "the old one goes with its last stream")
    assert ended(cluster.generate("changed", PROMPT, max_tokens=3, ignore_eos=True), 3)


def test_clients_that_ask_all_the_time_hear_nothing_of_a_replacement(cluster: Rolling) -> None:
    cluster.generate("asked", PROMPT, max_tokens=1)
    (old,) = cluster.running("asked")
    over = threading.Event()

    def ask() -> list[Heard]:
        heard = []
        while not over.is_set():
            heard.append(cluster.generate("asked", PROMPT, max_tokens=3, ignore_eos=True))
        return heard

    with ThreadPoolExecutor(max_workers=3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            cluster.define("asked", load_s=0.2)
            cluster.until(lambda: old not in cluster.running("asked"), "the old one has gone")
            (new,) = cluster.running("asked")
            cluster.until(lambda: cluster.running("asked")[new]["streams"] > 0, "the new one is asked")
        finally:
            over.set()
        heard = [one for answers in asking for one in answers.result()]
    assert [one for one in heard if not ended(one, 3)] == []


def test_a_load_of_a_running_model_takes_its_changed_configuration(cluster: Rolling) -> None:
    cluster.generate("loaded", PROMPT, max_tokens=1)
    (old,) = cluster.running("loaded")
    cluster.define("loaded", load_s=0.1)
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.load_model("loaded")
    ready = {name for name, replica in cluster.running("loaded").items() if replica["phase"] == "ready"}
    assert ready - {old}


def test_a_definition_that_does_not_start_leaves_the_old_one_serving(cluster: Rolling) -> None:
    stream = cluster.begun("broken", 60)
    (old,) = cluster.running("broken")
    cluster.define("broken", fault="load_fails")
    cluster.until(lambda: "told not to load" in cluster.index("broken").reason, "the index says why")
    assert cluster.index("broken").state == "READY"
    assert ended(cluster.generate("broken", PROMPT, max_tokens=3, ignore_eos=True), 3)
    assert ended(stream.rest(), 60)
    assert set(cluster.running("broken")) == {old}


def test_versions_are_served_as_the_policy_and_the_request_say(cluster: Rolling) -> None:
    def answering(version: str) -> set[tuple[str, str]]:
        """What the response says, and the versions that run afterwards."""
        given = generation_inputs(PROMPT, stream=False, max_tokens=1)
        said = client.infer("versions", given, model_version=version).get_response().model_version
        return {(said, replica["version"]) for replica in cluster.replicas("versions")}

    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        assert answering("") == {("1", "1")}
        add_version(cluster.repository, "versions", 2, cluster.checkpoint, limits=EngineLimits(**LIMITS))  # type: ignore[arg-type]
        cluster.until(lambda: answering("") == {("2", "2")}, "the latest version takes over")
        with pytest.raises(InferenceServerException, match="unknown model: 'versions' version 1 is not found"):
            answering("1")
        with (cluster.repository / "versions" / "config.pbtxt").open("a") as config:
            config.write("version_policy { all {} }\n")
        cluster.until(lambda: client.is_model_ready("versions", "1"), "both are served")
        assert [answering(version) for version in ("1", "2", "")] == [{("1", "1")}, {("2", "2")}, {("2", "2")}]


def test_a_model_that_goes_is_refused_and_its_streams_end(cluster: Rolling) -> None:
    stream = cluster.begun("gone", 60)
    shutil.rmtree(cluster.repository / "gone")
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        cluster.until(lambda: not client.is_model_ready("gone"), "its absence is noticed")
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'gone' is not found"):
            client.get_model_metadata("gone")
    assert cluster.generate("gone", PROMPT).errors == ["Request for unknown model: 'gone' is not found"]
    assert ended(stream.rest(), 60)
    cluster.until(lambda: cluster.replicas("gone") == [], "its replica goes with its last stream")
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as client:
        cluster.until(
            lambda: not client.is_model_ready("gone", headers=cluster.triton_headers()), "Triton has unloaded it"
        )
