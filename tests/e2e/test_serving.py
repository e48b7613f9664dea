"""Unmodified clients wake models that were not running, through real Triton servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from transformers import AutoModelForCausalLM, AutoTokenizer
from tritonclient.utils import InferenceServerException

from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import generation_inputs
from tests.e2e.conftest import NAMES
from tests.e2e.threads import together

PROMPT = "The three primary colours are"


@pytest.fixture(scope="module")
def expected(demo_model: Path) -> str:
    """What transformers' own greedy generate says in float32."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        whole = model.generate(ids, max_new_tokens=48, do_sample=False)
    return str(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))


def starts(cluster: LocalCluster, model: str) -> int:
    """How many replicas of the model were started, by the scheduler's own counter."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.metrics_port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    pattern = rf'serverless_triton_start_seconds_count{{model="{model}",state="\w+",tier="\w+"}} (\S+)'
    return int(sum(float(value) for value in re.findall(pattern, text)))


def receipts(cluster: LocalCluster, stream_id: str | None) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = cluster.get(f"/v2/cluster/receipts/{stream_id}")["receipts"]
    return answer


def make_cold(cluster: LocalCluster, model: str) -> None:
    """As any Triton client would: unload it."""
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.unload_model(model)
    assert cluster.replicas(model) == []


def test_load_warms_and_unload_releases_however_often(cluster: LocalCluster) -> None:
    make_cold(cluster, "alpha")
    before = starts(cluster, "alpha")
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.unload_model("alpha")  # it sleeps already
        for _ in range(2):
            client.load_model("alpha")
        assert (len(cluster.replicas("alpha")), starts(cluster, "alpha")) == (1, before + 1)
        for _ in range(2):
            client.unload_model("alpha")
            assert cluster.replicas("alpha") == []
        assert client.is_model_ready("alpha")
    assert starts(cluster, "alpha") == before + 1


def test_a_cold_model_answers_as_generate_does(cluster: LocalCluster, expected: str) -> None:
    make_cold(cluster, "alpha")
    heard = cluster.generate("alpha", PROMPT, max_tokens=48)
    assert heard.errors == []
    assert heard.text == expected
    (receipt,) = receipts(cluster, heard.stream_id)
    assert receipt["kind"] == "cold"
    tiled_s = sum(segment["duration_s"] for segment in receipt["critical_path"])
    assert tiled_s == pytest.approx(receipt["actual_s"], abs=1e-6)


def test_a_warm_model_answers_without_a_start(cluster: LocalCluster) -> None:
    cluster.generate("alpha", PROMPT, max_tokens=1)
    before = starts(cluster, "alpha")
    heard = cluster.generate("alpha", PROMPT, max_tokens=4)
    assert receipts(cluster, heard.stream_id)[0]["kind"] == "warm"
    assert starts(cluster, "alpha") == before


def test_a_client_can_read_whether_a_move_would_be_exact(cluster: LocalCluster) -> None:
    heard = cluster.generate("alpha", PROMPT, max_tokens=1)
    promise = receipts(cluster, heard.stream_id)[0]["exactness"]
    assert promise["kind"] in ("exact", "best_effort")
    assert len(promise["contract"]) == 64
    (replica,) = cluster.replicas("alpha")
    assert replica["exactness"] == promise


def test_tokens_arrive_as_they_are_made(cluster: LocalCluster) -> None:
    """No clock: the worker is stopped after the first tokens, so a text that comes at once would be here or never."""
    cluster.generate("alpha", PROMPT, max_tokens=1)
    workers = [replica["worker_pid"] for replica in cluster.replicas("alpha")]
    stream = cluster.stream("alpha", PROMPT, max_tokens=64, ignore_eos=True)
    stream.read(2)
    for worker in workers:
        cluster.kill(worker, signal.SIGSTOP)
    try:
        with contextlib.suppress(queue.Empty):
            while stream.next(timeout_s=1.0):
                pass
        before = len(stream.heard.output_ids)
        assert stream.heard.errors == []
        assert stream.heard.finish_reason in (None, "None")
    finally:
        for worker in workers:
            cluster.kill(worker, signal.SIGCONT)
    heard = stream.rest()
    assert 2 <= before < 64
    assert len(heard.output_ids) == 64
    assert len(receipts(cluster, heard.stream_id)) == 1  # it was the same worker all along


def test_four_models_take_turns_on_room_for_two(cluster: LocalCluster, expected: str) -> None:
    for _ in range(2):
        for name in NAMES:
            heard = cluster.generate(name, PROMPT, max_tokens=48)
            assert heard.errors == []
            assert heard.text == expected
            assert len(cluster.replicas()) <= 2


def test_a_second_start_comes_from_dram(cluster: LocalCluster) -> None:
    tiers = []
    for _ in range(3):
        make_cold(cluster, "beta")
        heard = cluster.generate("beta", PROMPT, max_tokens=1)
        tiers.append(receipts(cluster, heard.stream_id)[0]["tier"])
    assert tiers[-1] == "dram"


def test_clients_that_ask_at_once_for_a_cold_model_share_one_start(cluster: LocalCluster, expected: str) -> None:
    make_cold(cluster, "gamma")
    before = starts(cluster, "gamma")
    heard = together([lambda: cluster.generate("gamma", PROMPT, max_tokens=48)] * 2)
    assert [h.text for h in heard] == [expected, expected]
    assert starts(cluster, "gamma") == before + 1


def test_generation_stops_when_the_client_goes_away(cluster: LocalCluster) -> None:
    stream = cluster.stream("alpha", PROMPT, max_tokens=450, ignore_eos=True)
    stream.read(4)
    worker = cluster.serving("alpha")["worker_pid"]
    stream.cancel()
    cluster.until(lambda: cluster.serving("alpha")["streams"] == 0, "the reference is given back")
    cluster.until(lambda: cpu_ticks(worker, during_s=0.5) <= 5, "the worker computes no more", timeout_s=5.0)


def cpu_ticks(pid: int, *, during_s: float) -> int:
    """CPU time that the process takes, in kernel ticks (10 ms)."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(during_s)
    return used() - before


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("truncated", "model.safetensors", "is cut off"),
        ("vanished", "config.json", "there is no file"),
        ("garbled", "model.safetensors", "is not a valid safetensors file"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_fails_with_the_file_and_the_next_model_works(
    cluster: LocalCluster, name: str, file: str, words: str
) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(name, generation_inputs(PROMPT, stream=False))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    (streamed,) = cluster.generate(name, PROMPT, max_tokens=4).errors
    for error in (caught.value.message(), streamed):
        assert f"failed to load '{name}'" in error
        assert f"/{name}/{file}" in error
        assert words in error
    after = cluster.generate("alpha", PROMPT, max_tokens=4)
    assert after.errors == []
    assert cluster.replicas(name) == []


def test_unmodified_http_client_gets_the_whole_text(cluster: LocalCluster, expected: str) -> None:
    make_cold(cluster, "delta")
    with triton_http.InferenceServerClient(cluster.http) as client:
        text = triton_http.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([PROMPT.encode()], dtype=np.object_))
        sampling = triton_http.InferInput("sampling_parameters", [1], "BYTES")
        sampling.set_data_from_numpy(np.array([b'{"max_tokens": 48}'], dtype=np.object_))
        silent = triton_http.InferInput("exclude_input_in_output", [1], "BOOL")
        silent.set_data_from_numpy(np.array([True]))
        assert client.is_model_ready("delta")
        result = client.infer("delta", [text, sampling, silent])
    assert result.as_numpy("text_output")[0].decode() == expected


def test_generate_and_generate_stream_over_http(cluster: LocalCluster, expected: str) -> None:
    body = json.dumps({"text_input": PROMPT, "max_tokens": 48, "exclude_input_in_output": True})
    status, answer = post(cluster, "/v2/models/alpha/generate", body)
    assert (status, json.loads(answer)["text_output"]) == (200, expected)
    body = json.dumps({"text_input": PROMPT, "max_tokens": 48, "stream": True})
    status, answer = post(cluster, "/v2/models/alpha/generate_stream", body)
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == expected


def post(cluster: LocalCluster, path: str, body: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_models_that_do_not_run_have_metadata_config_and_statistics(cluster: LocalCluster) -> None:
    make_cold(cluster, "beta")
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("beta")
        assert "text_input" in [tensor.name for tensor in client.get_model_metadata("beta").inputs]
        assert client.get_model_config("beta").config.backend == "serverless"
        assert client.get_inference_statistics("beta").model_stats[0].name == "beta"
        index = {model.name: model.state for model in client.get_model_repository_index().models}
    assert index["beta"] == "UNAVAILABLE"
    assert set(NAMES) <= set(index)


def test_an_unknown_model_is_not_found_in_tritons_words(cluster: LocalCluster) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("nope", generation_inputs(PROMPT, stream=False))
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert caught.value.message() == "Request for unknown model: 'nope' is not found"
    assert post(cluster, "/v2/models/nope/generate", '{"text_input": "x"}')[0] == 404


def test_unknown_models_on_a_shared_stream_crash_no_server(cluster: LocalCluster) -> None:
    """Sent to a Triton server on one stream beside good requests, they can end it."""
    servers = [cluster.pid(f"server-{number}.triton") for number in range(2)]
    inputs = generation_inputs(PROMPT, max_tokens=2, ignore_eos=True)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(40):
            for model in ("nope", "alpha", ""):
                client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        errors, finals = 0, 0
        while errors < 80 or finals < 40:
            result, error = answers.get(timeout=60)
            errors += error is not None
            finals += result is not None and result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
    assert (errors, finals) == (80, 40)
    assert [cluster.pid(f"server-{number}.triton") for number in range(2)] == servers
    assert cluster.generate("alpha", PROMPT, max_tokens=2).errors == []


@pytest.mark.parametrize("name", ["../alpha", "alpha/../beta", "..", "a/b"])
def test_names_that_lead_elsewhere_are_refused(cluster: LocalCluster, name: str) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(name, generation_inputs(PROMPT, stream=False))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "invalid model name" in caught.value.message()


@pytest.mark.parametrize(
    "name", ["..%2Falpha", "alpha%2F..%2Fbeta", "%2E%2E%2Falpha", "a%2Fb", "..alpha", "..%5Calpha"]
)
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v2/models/{}/generate", 400, "invalid model name"),
        ("/v2/models/{}/infer", 400, "invalid model name"),
        ("/v2/repository/models/{}/load", 500, "failed to poll from model repository"),  # as Triton answers
    ],
)
def test_http_names_that_lead_elsewhere_are_refused(
    cluster: LocalCluster, path: str, name: str, status: int, words: str
) -> None:
    before = starts(cluster, "alpha")
    found, answer = post(cluster, path.format(name), '{"text_input": "x", "inputs": []}')
    assert found == status
    assert words in json.loads(answer)["error"]
    assert starts(cluster, "alpha") == before


@pytest.mark.parametrize("path", ["/v2/models/../alpha/generate", "/v2/models/alpha/../../etc/passwd", "/../v2/models"])
def test_http_paths_with_dots_reach_no_model(cluster: LocalCluster, path: str) -> None:
    assert post(cluster, path, '{"text_input": "x"}')[0] == 404


def wrong_dtype() -> list[Any]:
    inputs = generation_inputs(PROMPT)
    inputs[1] = triton_grpc.InferInput("stream", [1], "INT32")
    inputs[1].set_data_from_numpy(np.array([1], dtype=np.int32))
    return inputs


def wrong_shape() -> list[Any]:
    inputs = generation_inputs(PROMPT)
    inputs[0] = triton_grpc.InferInput("text_input", [2], "BYTES")
    inputs[0].set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
    return inputs


@pytest.mark.parametrize(
    ("inputs", "tensor"),
    [(wrong_dtype(), "stream"), (wrong_shape(), "text_input"), (generation_inputs(PROMPT)[1:], "text_input")],
)
def test_wrong_tensors_are_invalid_arguments_that_name_the_tensor(
    cluster: LocalCluster, inputs: list[Any], tensor: str
) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("alpha", inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert tensor in caught.value.message()


def test_sampling_parameters_that_make_no_sense_are_invalid_arguments(cluster: LocalCluster) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("alpha", generation_inputs(PROMPT, stream=False, temprature=1.0))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "temprature" in caught.value.message()


def test_clients_may_not_claim_a_streams_past(cluster: LocalCluster) -> None:
    resume = triton_grpc.InferInput("resume_token_ids", [1], "INT32")
    resume.set_data_from_numpy(np.array([1], dtype=np.int32))
    with triton_grpc.InferenceServerClient(cluster.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("alpha", [*generation_inputs(PROMPT, stream=False), resume])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "resume_token_ids" in caught.value.message()
