"""Models of Triton's stock Python backend beside our own: they wake, answer unchanged and make room for one another."""

from __future__ import annotations

import json
import os
import queue
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc import Channel, RpcError, insecure_channel
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from serverless_triton.backend.model_repository import add_model
from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES, LIMITS, ROOM_FOR_ONE
from tests.e2e.foreign_models import (
    ACCUMULATE,
    ACCUMULATE_CONFIG,
    ADD_SUB,
    ADD_SUB_CONFIG,
    BROKEN,
    COUNT,
    COUNT_CONFIG,
    REPEAT,
    REPEAT_CONFIG,
    TWICE_CONFIG,
    UPPER,
    UPPER_CONFIG,
    add_ensemble,
    add_python_model,
)
from tests.integration.gateway.bad_messages import bad_message

BALLAST = 100_000_000
BAD_MESSAGES = int(os.environ.get("BAD_REQUESTS", "300"))
SERVICE = "/inference.GRPCInferenceService"
UNREADABLE = ("INTERNAL", "Unable to parse request")
LEFT, RIGHT = np.array([[1, 2, 3, 4]], np.float32), np.array([[10, 20, 30, 40]], np.float32)


@pytest.fixture(scope="module")
def cluster(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One server with room for one replica of ours, and stock models, one of which takes as much."""
    models = tmp_path_factory.mktemp("foreign")
    add_model(models, "alpha", demo_model, limits=LIMITS)
    add_python_model(models, "add_sub", ADD_SUB_CONFIG, ADD_SUB, host_memory_bytes="1000000")
    add_python_model(models, "add_sub_again", ADD_SUB_CONFIG, ADD_SUB, host_memory_bytes="2000000")
    add_ensemble(models, "twice", TWICE_CONFIG)
    add_python_model(models, "repeat", REPEAT_CONFIG, REPEAT, host_memory_bytes="1000000")
    add_python_model(models, "count", COUNT_CONFIG, COUNT, host_memory_bytes="1000000")
    full = str(ROOM_FOR_ONE - 5_000_000)
    add_python_model(models, "large", UPPER_CONFIG, UPPER, host_memory_bytes=full)
    add_python_model(models, "accumulate", ACCUMULATE_CONFIG, ACCUMULATE, host_memory_bytes=full)
    add_python_model(models, "undeclared", UPPER_CONFIG, UPPER, ballast_bytes=str(BALLAST))
    add_python_model(models, "huge", UPPER_CONFIG, UPPER, host_memory_bytes=str(2 * ROOM_FOR_ONE))
    add_python_model(models, "impossible", UPPER_CONFIG, BROKEN, host_memory_bytes="1000000")
    with LocalCluster(
        tmp_path_factory.mktemp("cluster"),
        models,
        servers=1,
        device_memory_bytes=ROOM_FOR_ONE,
        dram_bytes=DRAM_BYTES,
    ) as running:
        yield running


@pytest.fixture
def grpc(cluster: LocalCluster) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        yield client


@pytest.fixture
def http(cluster: LocalCluster) -> Iterator[Any]:
    with triton_http.InferenceServerClient(cluster.http) as client:
        yield client


def sides(module: Any, *, binary: bool | None = None) -> list[Any]:
    inputs = [module.InferInput(f"INPUT{n}", list(LEFT.shape), "FP32") for n in (0, 1)]
    for tensor, values in zip(inputs, (LEFT, RIGHT), strict=True):
        tensor.set_data_from_numpy(values, **({} if binary is None else {"binary_data": binary}))
    return inputs


def number(value: int, name: str = "times") -> Any:
    tensor = triton_grpc.InferInput(name, [1], "INT32")
    tensor.set_data_from_numpy(np.array([value], np.int32))
    return tensor


def text(value: str) -> Any:
    tensor = triton_grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], np.object_))
    return tensor


def streamed(client: Any, model: str, inputs: list[Any], **options: Any) -> list[Any]:
    """Responses of one request on a stream, and its error if it has one."""
    heard: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: heard.put(error or result.get_response()))
    client.async_stream_infer(model, inputs, **options)
    client.stop_stream()
    return [heard.get_nowait() for _ in range(heard.qsize())]


def loaded(cluster: LocalCluster) -> set[str]:
    """What the server's own Triton calls ready."""
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as client:
        index = client.get_model_repository_index(headers=cluster.triton_headers())
    return {model.name for model in index.models if model.state == "READY"}


def test_a_stock_model_wakes_for_an_infer_and_answers_its_tensors(cluster: LocalCluster, grpc: Any) -> None:
    grpc.unload_model("add_sub")
    assert "add_sub" not in loaded(cluster)
    result = grpc.infer("add_sub", sides(triton_grpc), request_id="mine")
    assert result.get_response().id == "mine"
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)
    assert "add_sub" in loaded(cluster)


@pytest.mark.parametrize("binary", [True, False])
def test_http_carries_tensors_in_binary_and_in_json(http: Any, binary: bool) -> None:
    outputs = [triton_http.InferRequestedOutput("OUTPUT1", binary_data=binary)]
    result = http.infer("add_sub", sides(triton_http, binary=binary), outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)
    assert result.as_numpy("OUTPUT0") is None


@pytest.mark.parametrize(
    ("model", "inputs", "output", "value"),
    [
        ("large", {"text": "loud"}, "upper", "LOUD"),
        ("add_sub", {"INPUT0": [1, 2, 3, 4], "INPUT1": [1, 1, 1, 1]}, "OUTPUT0", [2, 3, 4, 5]),
    ],
)
def test_generate_asks_a_stock_model_too(
    cluster: LocalCluster, model: str, inputs: dict[str, Any], output: str, value: Any
) -> None:
    body = json.dumps(inputs).encode()
    with urllib.request.urlopen(f"http://{cluster.http}/v2/models/{model}/generate", body, timeout=30) as answer:
        assert json.loads(answer.read())[output] == value


def test_a_decoupled_models_responses_come_as_its_server_sends_them(grpc: Any) -> None:
    responses = streamed(grpc, "repeat", [number(3)], request_id="r", enable_empty_final_response=True)
    assert [list(r.raw_output_contents) for r in responses] == [[bytes([n, 0, 0, 0])] for n in range(3)] + [[]]
    assert [r.parameters["triton_final_response"].bool_param for r in responses] == [False, False, False, True]
    assert {r.id for r in responses} == {"r"}


def test_what_triton_refuses_is_refused_in_its_words_and_status(cluster: LocalCluster, grpc: Any) -> None:
    wrong = sides(triton_grpc)[:1]
    told = []
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as direct:
        grpc.load_model("add_sub")
        for client, headers in ((grpc, {}), (direct, cluster.triton_headers())):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("add_sub", wrong, headers=headers)
            told.append((refused.value.status(), refused.value.message()))
    assert told[0] == told[1]
    assert "INVALID_ARGUMENT" in told[0][0]


def counted(client: Any, shape: list[int], values: bytes, **options: Any) -> int:
    tensor = triton_grpc.InferInput("x", shape, "INT32")
    tensor._raw_content = values  # whatever the shape says
    return int(client.infer("count", [tensor], **options).as_numpy("count").flat[0])


def test_no_shape_ends_a_stock_models_process(cluster: LocalCluster, grpc: Any) -> None:
    assert counted(grpc, [1, 2], bytes(8)) == 2
    (before,) = cluster.replicas("count")
    for shape, values in (
        ([1, 2**62], b""),
        ([1, 2**62 + 1], bytes(4)),
        ([1, -(2**63)], b""),
        ([8, 2**59], b""),
        ([2**32, 0], b""),
        ([0, 0], b""),
    ):
        with pytest.raises(InferenceServerException) as refused:
            counted(grpc, shape, values, client_timeout=10)
        assert "INVALID_ARGUMENT" in str(refused.value.status())
    assert counted(grpc, [1, 3], bytes(12)) == 3
    assert cluster.replicas("count")[0]["id"] == before["id"]


def sound_count() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="count", id="mine", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="INT32", shape=[1, 2])
    return request


def said_of(message: bytes, channel: Channel, *, streamed: bool) -> tuple[str, str]:
    """Status and words of a unary call, or of a stream."""
    try:
        if streamed:
            list(channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([message]), timeout=10.0))
        else:
            channel.unary_unary(f"{SERVICE}/ModelInfer")(message, timeout=10.0)
    except RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def test_no_bad_message_ends_a_stock_model_or_its_server(cluster: LocalCluster, grpc: Any) -> None:
    grpc.load_model("count")
    before = cluster.pid("server-0.triton"), [replica["id"] for replica in cluster.replicas("count")]
    with insecure_channel(cluster.grpc) as channel:
        for seed in range(BAD_MESSAGES):
            said = said_of(bad_message(seed, sound_count()), channel, streamed=seed % 2 == 1)
            assert said[0] in {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} or said == UNREADABLE, (seed, said)
            if seed % 10 == 0:
                assert counted(grpc, [1, 2], bytes(8)) == 2, seed
    assert (cluster.pid("server-0.triton"), [replica["id"] for replica in cluster.replicas("count")]) == before


def test_sizes_are_refused_in_tritons_words_where_it_has_any(cluster: LocalCluster, grpc: Any) -> None:
    grpc.load_model("count")
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as direct:
        for shape, values in (([1, 2], bytes(4)), ([1, 0], bytes(4)), ([1, -1], bytes(4)), ([9, 1], bytes(36))):
            told = []
            for client, headers in ((grpc, {}), (direct, cluster.triton_headers())):
                with pytest.raises(InferenceServerException) as refused:
                    counted(client, shape, values, headers=headers)
                told.append((refused.value.status(), refused.value.message()))
            assert told[0] == told[1]


def test_a_model_that_refuses_is_heard_and_asked_once(cluster: LocalCluster, grpc: Any) -> None:
    (error,) = streamed(grpc, "repeat", [number(13)])
    assert "thirteen is one too many" in str(error)
    assert cluster.replicas("repeat")[0]["streams"] == 0
    assert len(streamed(grpc, "repeat", [number(1)])) == 1


def test_a_model_whose_process_died_is_loaded_anew_for_the_next_request(cluster: LocalCluster, grpc: Any) -> None:
    (error,) = streamed(grpc, "repeat", [number(99)])
    assert isinstance(error, InferenceServerException)
    cluster.until(lambda: cluster.replicas("repeat") == [], "the dead replica is given up")
    assert len(streamed(grpc, "repeat", [number(2)])) == 2


def test_metadata_and_configuration_of_a_sleeping_model_are_what_triton_says_of_a_loaded_one(
    cluster: LocalCluster, grpc: Any
) -> None:
    def said(client: Any, **headers: Any) -> tuple[Any, Any]:
        metadata = client.get_model_metadata(model, as_json=True, **headers)
        return metadata, client.get_model_config(model, as_json=True, **headers)

    for model in ("add_sub", "repeat", "twice"):
        grpc.unload_model(model)
        asleep = said(grpc)
        assert grpc.is_model_ready(model)
        assert model not in loaded(cluster)
        grpc.load_model(model)
        with triton_grpc.InferenceServerClient(cluster.triton_address()) as direct:
            assert asleep == said(direct, headers=cluster.triton_headers())


def test_load_and_unload_are_seen_in_the_index(grpc: Any) -> None:
    def state() -> str:
        return {model.name: str(model.state) for model in grpc.get_model_repository_index().models}["add_sub"]

    grpc.load_model("add_sub")
    grpc.load_model("add_sub")
    assert state() == "READY"
    grpc.unload_model("add_sub")
    assert state() == "UNAVAILABLE"


def test_requests_are_counted(grpc: Any) -> None:
    def counts() -> tuple[int, int]:
        stats = grpc.get_inference_statistics("add_sub").model_stats[0].inference_stats
        return stats.success.count, stats.fail.count

    succeeded, failed = counts()
    grpc.infer("add_sub", sides(triton_grpc))
    with pytest.raises(InferenceServerException):
        grpc.infer("add_sub", sides(triton_grpc)[:1])
    assert counts() == (succeeded + 1, failed + 1)


def test_a_cold_start_has_a_receipt_that_explains_all_of_it(cluster: LocalCluster, http: Any) -> None:
    http.unload_model("add_sub")
    result = http.infer("add_sub", sides(triton_http), headers={"Triton-Return-Receipt": "true"})
    (receipt,) = json.loads(result.get_response()["parameters"]["receipt"])
    assert (receipt["kind"], receipt["tier"]) == ("cold", "triton")
    assert "triton.load" in {segment["name"] for segment in receipt["critical_path"]}
    tiled_s = sum(segment["duration_s"] for segment in receipt["critical_path"])
    assert tiled_s == pytest.approx(receipt["actual_s"], abs=1e-6)


def test_a_stock_model_and_one_of_ours_make_room_for_one_another(cluster: LocalCluster, grpc: Any) -> None:
    for _ in range(2):
        heard = cluster.generate("alpha", "The three primary colours are", max_tokens=4)
        assert heard.errors == []
        assert cluster.replicas("large") == []
        assert "large" not in loaded(cluster)
        assert grpc.infer("large", [text("quiet")]).as_numpy("upper")[0] == b"QUIET"
        assert cluster.replicas("alpha") == []


def test_a_model_that_is_asked_is_not_evicted(cluster: LocalCluster, grpc: Any) -> None:
    grpc.infer("large", [text("a")])
    pid = int(grpc.infer("large", [text("a")]).as_numpy("pid")[0])
    streamed(grpc, "repeat", [number(2)])
    assert int(grpc.infer("large", [text("a")]).as_numpy("pid")[0]) == pid


def test_memory_that_is_not_declared_is_learned_from_the_load(cluster: LocalCluster, grpc: Any) -> None:
    grpc.infer("undeclared", [text("a")])
    (replica,) = cluster.replicas("undeclared")
    assert BALLAST < replica["host_bytes"] < 2 * BALLAST


def test_what_was_learned_makes_the_next_start_make_room(cluster: LocalCluster, grpc: Any) -> None:
    grpc.infer("undeclared", [text("a")])
    grpc.infer("large", [text("a")])
    assert cluster.replicas("undeclared") == []
    grpc.infer("undeclared", [text("a")])
    assert cluster.replicas("large") == []


def add(client: Any, sequence: int | str, value: int, **flags: bool) -> int:
    said = {"sequence_start": False, "sequence_end": False} | {f"sequence_{flag}": on for flag, on in flags.items()}
    result = client.infer("accumulate", [number(value, "value")], sequence_id=sequence, **said)
    return int(result.as_numpy("sum")[0])


def test_sequences_keep_their_sums_apart(cluster: LocalCluster, grpc: Any) -> None:
    assert [add(grpc, 1, 10, start=True), add(grpc, 2, 100, start=True)] == [10, 100]
    assert [add(grpc, 1, 1), add(grpc, 2, 1)] == [11, 101]
    assert [add(grpc, 1, 1, end=True), add(grpc, 2, 1, end=True)] == [12, 102]
    assert cluster.replicas("accumulate")[0]["streams"] == 0


def test_a_sequence_over_http_may_have_any_id_of_64_bits(http: Any) -> None:
    value = triton_http.InferInput("value", [1], "INT32")
    value.set_data_from_numpy(np.array([5], np.int32))
    sums = []
    for first in (True, False):
        said = {"sequence_start": first, "sequence_end": not first}
        sums.append(int(http.infer("accumulate", [value], sequence_id=2**63 + 5, **said).as_numpy("sum")[0]))
    assert sums == [5, 10]


def test_a_sequence_on_a_stream_is_answered_in_order(grpc: Any) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: heard.put(error or int(result.as_numpy("sum")[0])))
    for value in range(1, 6):
        flags = {"sequence_start": value == 1, "sequence_end": value == 5}
        grpc.async_stream_infer("accumulate", [number(value, "value")], sequence_id=3, **flags)
    grpc.stop_stream()
    assert [heard.get_nowait() for _ in range(heard.qsize())] == [1, 3, 6, 10, 15]


def test_a_sequence_that_was_not_begun_is_refused_in_tritons_words(cluster: LocalCluster, grpc: Any) -> None:
    told = []
    grpc.load_model("accumulate")
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as direct:
        for client, headers in ((grpc, {}), (direct, cluster.triton_headers())):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("accumulate", [number(1, "value")], sequence_id=4, headers=headers)
            told.append((refused.value.status(), refused.value.message()))
    assert told[0] == told[1]


def test_an_open_sequence_keeps_its_model_until_it_is_idle_too_long(cluster: LocalCluster, grpc: Any) -> None:
    assert add(grpc, 5, 1, start=True) == 1
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(cluster.generate, "alpha", "The three primary colours are", max_tokens=1)
        cluster.until(lambda: cluster.status()["waiting"] == {"alpha": 1}, "the other model waits")
        assert add(grpc, 5, 1) == 2
        assert len(cluster.replicas("accumulate")) == 1
        assert not waiting.done()
        assert waiting.result(timeout=60).errors == []
    assert cluster.replicas("accumulate") == []


def test_an_ensemble_wakes_with_its_members_and_goes_with_them(cluster: LocalCluster, grpc: Any) -> None:
    for name in ("twice", "add_sub"):
        grpc.unload_model(name)
    result = grpc.infer("twice", sides(triton_grpc))
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), 2 * LEFT)
    assert cluster.replicas("twice")[0]["host_bytes"] == 3_000_000
    assert loaded(cluster) >= {"twice", "add_sub", "add_sub_again"}
    grpc.unload_model("twice")
    assert loaded(cluster) & {"twice", "add_sub", "add_sub_again"} == set()


def test_a_member_stays_as_long_as_somebody_needs_it(cluster: LocalCluster, grpc: Any) -> None:
    for name in ("twice", "add_sub"):
        grpc.load_model(name)
    grpc.unload_model("add_sub")
    np.testing.assert_array_equal(grpc.infer("twice", sides(triton_grpc)).as_numpy("OUTPUT1"), 2 * RIGHT)
    grpc.load_model("add_sub")
    grpc.unload_model("twice")
    assert loaded(cluster) & {"twice", "add_sub", "add_sub_again"} == {"add_sub"}


def test_a_model_too_large_for_every_server_is_refused(grpc: Any) -> None:
    with pytest.raises(InferenceServerException, match="no server has that much"):
        grpc.infer("huge", [text("a")])


def test_why_triton_could_not_load_a_model_is_told(grpc: Any) -> None:
    with pytest.raises(InferenceServerException, match="this model cannot be"):
        grpc.infer("impossible", [text("a")])


def test_a_new_scheduler_unloads_what_nobody_accounts_for(cluster: LocalCluster, grpc: Any) -> None:
    gone = add_python_model(cluster.repository, "gone", ADD_SUB_CONFIG, ADD_SUB, host_memory_bytes="1000000")
    outer = add_ensemble(cluster.repository, "gone_too", TWICE_CONFIG.replace('"add_sub"', '"gone"'))
    headers = cluster.triton_headers()
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as direct:
        for model in ("add_sub", "gone_too"):
            direct.load_model(model, headers=headers)
        grpc.infer("large", [text("a")])
        killed = cluster.pid("scheduler")
        cluster.kill(killed)
        for folder in (gone, outer):
            shutil.rmtree(folder)
        assert direct.is_model_ready("gone_too", headers=headers)
        cluster.until(lambda: cluster.pid("scheduler") != killed, "a new scheduler is started")
        cluster.until(lambda: cluster.servers_up() == 1, "the scheduler is back", timeout_s=60.0)
        assert loaded(cluster) & {"add_sub", "large", "add_sub_again"} == set()
        assert not any(direct.is_model_ready(model, headers=headers) for model in ("gone", "gone_too"))
