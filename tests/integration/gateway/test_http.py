"""The HTTP side with unmodified tritonclient.http, and as curl sees it."""

from __future__ import annotations

import asyncio
import gzip
import json

import aiohttp
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException
from yarl import URL

from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


async def with_client(gateway, act):
    """The client blocks, so it works in a thread of its own."""

    def run():
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{gateway.http_port}") as client:
            return act(client)

    return await asyncio.to_thread(run)


def text_input(*, binary=True, text="hi"):
    tensor = tritonclient.http.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=object), binary_data=binary)
    return tensor


async def test_server_and_models_are_described(gateway):
    def act(client):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sleeper")
        assert not client.is_model_ready("nope")
        assert client.get_server_metadata()["name"] == "triton"
        assert client.get_model_metadata("sleeper")["inputs"][0] == {
            "name": "text_input",
            "datatype": "BYTES",
            "shape": [1],
        }
        config = client.get_model_config("sleeper")
        assert config["model_transaction_policy"] == {"decoupled": True}
        assert config["input"][0]["dims"] == [1]
        assert config["max_batch_size"] == 0
        assert client.get_inference_statistics("sleeper")["model_stats"][0]["inference_count"] == 0
        assert len(client.get_inference_statistics()["model_stats"]) == 3

    await with_client(gateway, act)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
async def test_infer_with_binary_and_json_tensors(gateway, binary_input, binary_output):
    def act(client):
        wanted = [
            tritonclient.http.InferRequestedOutput(name, binary_data=binary_output)
            for name in ("text_output", "output_ids")
        ]
        return client.infer("m", [text_input(binary=binary_input)], outputs=wanted, request_id="r1")

    result = await with_client(gateway, act)
    assert result.as_numpy("text_output").tolist() in (["hi 0 1 2 3"], [b"hi 0 1 2 3"])
    assert result.as_numpy("output_ids").tolist() == [0, 1, 2, 3]
    assert result.get_response()["id"] == "r1"


async def test_infer_without_listed_outputs(gateway):
    result = await with_client(gateway, lambda client: client.infer("m", [text_input()]))
    assert result.as_numpy("text_output")[0] == b"hi 0 1 2 3"
    assert result.as_numpy("output_ids") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_infer_with_a_compressed_request(gateway, algorithm):
    def act(client):
        return client.infer("m", [text_input()], request_compression_algorithm=algorithm)

    assert (await with_client(gateway, act)).as_numpy("text_output")[0] == b"hi 0 1 2 3"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
async def test_infer_with_a_compressed_answer(gateway, algorithm, binary):
    def act(client):
        wanted = [tritonclient.http.InferRequestedOutput("text_output", binary_data=binary)]
        return client.infer("m", [text_input()], outputs=wanted, response_compression_algorithm=algorithm)

    assert (await with_client(gateway, act)).as_numpy("text_output").tolist() in ([b"hi 0 1 2 3"], ["hi 0 1 2 3"])


async def test_an_answer_is_compressed_where_the_client_takes_it_and_not_elsewhere(gateway):
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    url = f"http://127.0.0.1:{gateway.http_port}/v2/models/m/infer"
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.post(url, json={"inputs": [tensor]}, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert json.loads(gzip.decompress(await answer.read()))["outputs"][0]["data"] == ["hi 0 1 2 3"]
        async with session.post(url, json={"inputs": [tensor]}, headers={"Accept-Encoding": "identity"}) as answer:
            assert "Content-Encoding" not in answer.headers
            assert json.loads(await answer.read())["outputs"][0]["data"] == ["hi 0 1 2 3"]


async def test_repository_through_the_client(gateway):
    def act(client):
        client.load_model("sleeper")
        loaded = {model["name"]: model.get("state") for model in client.get_model_repository_index()}
        client.unload_model("sleeper")
        unloaded = {model["name"]: model.get("state") for model in client.get_model_repository_index()}
        with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
            client.load_model("nope")
        client.unload_model("nope")
        return loaded["sleeper"], unloaded["sleeper"]

    assert await with_client(gateway, act) == ("READY", "UNAVAILABLE")


async def test_generate(http):
    async with http.post("/v2/models/m/generate", json={"text_input": "hi", "id": "g1"}) as answer:
        assert answer.status == 200
        assert len(answer.headers["Triton-Stream-Id"]) >= 20
        assert await answer.json() == {
            "id": "g1",
            "model_name": "m",
            "model_version": "1",
            "text_output": "hi 0 1 2 3",
        }


async def test_generate_stream(http):
    body = {"text_input": "hi", "stream": True, "return_finish_reason": True}
    async with http.post("/v2/models/m/generate_stream", json=body) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        events = [json.loads(event.removeprefix("data: ")) for event in (await answer.text()).split("\n\n") if event]
    assert [event["text_output"] for event in events] == [" 0", " 1", " 2", " 3"]
    assert [event["finish_reason"] for event in events] == ["None", "None", "None", "length"]


async def test_sampling_settings_reach_the_backend_however_they_are_written(http, upstream):
    body = {
        "text_input": "hi",
        "temperature": 0.5,
        "parameters": {"max_tokens": 9, "top_p": 0.1},
        "sampling_parameters": '{"top_p": 0.9}',
    }
    async with http.post("/v2/models/m/generate", json=body) as answer:
        assert answer.status == 200
    request = upstream.calls[0].request
    raw = request.raw_input_contents[[t.name for t in request.inputs].index("sampling_parameters")]
    said = json.loads(raw[4:])
    assert isinstance(said.pop("seed"), int)  # drawn once for the stream, so that a resume draws the same
    assert said == {"temperature": 0.5, "max_tokens": 9, "top_p": 0.9}
    assert set(request.parameters) == {
        "token_state",
        "attempt",
        "deadline_unix_s",
        "triton_enable_empty_final_response",
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v2/nothing", None, 404, "Not Found"),
        ("GET", "/v2/models/m/generate", None, 405, "Method Not Allowed"),
        ("GET", "/v2/models/nope", None, 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/m/versions/7", None, 404, "Request for unknown model: 'm' version 7 is not found"),
        ("GET", "/v2/models/m/versions/x", None, 404, "Not Found"),
        ("GET", "/v2/models/nope/ready", None, 400, "Model version not ready"),
        ("GET", "/v2/models/..%2Fm/ready", None, 400, "Model version not ready"),
        ("GET", "/v2/models/..%2Fm", None, 400, "invalid model name"),
        ("GET", "/v2/models/nope/stats", None, 400, "requested model 'nope' is not available"),
        ("POST", "/v2/trace/setting", '{"trace_level": ["TIMESTAMPS"]}', 503, "does not support tracing"),
        ("POST", "/v2/trace/setting", '{"trace_file": "/etc/x"}', 501, "can not be updated through network protocol"),
        ("POST", "/v2/logging", '{"log_verbose_level": 1}', 503, "does not support dynamic logging"),
        ("POST", "/v2/logging", '{"log_file": "/etc/x"}', 501, "can not be updated through network protocol"),
        ("POST", "/v2/systemsharedmemory/region/a/register", "{}", 400, "has no 'key' field"),
        ("GET", "/v2/cudasharedmemory/region/a/status", None, 404, "Unable to find cuda shared memory region: 'a'"),
        ("POST", "/v2/models/m/generate", "{bad", 400, "failed to parse the request JSON buffer"),
        ("POST", "/v2/models/m/generate", "", 400, "failed to parse the request JSON buffer"),
        ("POST", "/v2/models/m/generate", '{"\\ud800": 1}', 400, "a parameter's name is not Unicode text"),
        ("POST", "/v2/models/m/infer", '{"inputs": [], "parameters": {"\\ud800": 1}}', 400, "name is not Unicode text"),
        ("POST", "/v2/repository/models/m/load", '{"parameters": {"\\ud800": 1}}', 400, "JSON non-string as string"),
        ("POST", "/v2/models/m/generate", "[]", 400, "attempt to get members for non-object"),
        (
            "POST",
            "/v2/models/m/generate",
            "{}",
            400,
            "exactly one of the inputs 'text_input', 'input_ids' and 'messages'",
        ),
        (
            "POST",
            "/v2/models/m/generate",
            '{"text_input": 5}',
            400,
            "Unable to parse JSON bytes array: attempt to access",
        ),
        ("POST", "/v2/models/m/generate", '{"text_input": ["a", "b"]}', 400, "can not convert input 'text_input'"),
        ("POST", "/v2/models/m/generate", '{"text_input": "a", "x": [1]}', 400, "parameter 'x' has invalid type"),
        ("POST", "/v2/models/m/generate", '{"text_input": "a", "attempt": 1}', 400, "'attempt' is reserved"),
        ("POST", "/v2/models/m/generate", '{"text_input": "a", "resume_token_ids": 1}', 400, "reserved"),
        ("POST", "/v2/models/m/infer", '{"inputs": 5}', 400, "Unable to parse 'inputs'"),
        ("POST", "/v2/models/m/infer", '{"inputs": [{}]}', 400, "But no field is set"),
        (
            "POST",
            "/v2/models/m/infer",  # ends a tritonserver 2.51
            '{"inputs": [{"name": "input_ids", "datatype": "INT32", "shape": [4611686018427387904], "data": [1]}]}',
            400,
            "Shape does not match true shape of 'data' field",
        ),
        ("POST", "/v2/models/m/infer", "[" * 50_000, 400, "failed to parse the request JSON buffer"),
        ("POST", "/v2/models/nope/generate_stream", '{"text_input": "a"}', 404, "unknown model: 'nope'"),
        ("POST", "/v2/repository/index", "{bad", 400, "failed to parse the request JSON buffer"),
        (
            "POST",
            "/v2/repository/models/m/load",
            '{"parameters": {"config": ""}}',
            400,
            "unrecognized load parameter",
        ),
    ],
)
async def test_what_bad_requests_get(http, method, path, body, status, words):
    async with http.request(method, URL(path, encoded=True), data=body) as answer:
        assert answer.status == status
        assert words in (await answer.json())["error"]
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("error", "status"), [(LoadFailed("no"), 503), (NoCapacity("no"), 429), (AdmissionTimeout("no"), 504)]
)
@pytest.mark.parametrize("path", ["infer", "generate", "generate_stream"])
async def test_failed_admission_has_its_status(http, admission, error, status, path):
    admission.refuse(error)
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    body = {"inputs": [tensor]} if path == "infer" else {"text_input": "hi"}
    async with http.post(f"/v2/models/m/{path}", json=body) as answer:
        assert (answer.status, (await answer.json())["error"]) == (status, "no")


async def test_error_in_the_middle_of_a_stream_is_an_event(manual_gateway, by_hand):
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{manual_gateway.http_port}/v2/models/m/generate_stream"
        posting = asyncio.ensure_future(session.post(url, json={"text_input": "hi", "stream": True}))
        call = await asyncio.wait_for(by_hand.call(0), 5)
        call.tokens(0, 1)
        answer = await posting
        call.fail("INTERNAL", "engine bug")
        assert (await answer.text()).split("\n\n")[1] == 'data: {"error":"engine bug"}'


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
async def test_client_that_hangs_up_cancels_upstream(manual_gateway, by_hand, admission, path):
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{manual_gateway.http_port}/v2/models/m/{path}"
        posting = asyncio.ensure_future(session.post(url, json={"text_input": "hi", "stream": True}))
        call = await asyncio.wait_for(by_hand.call(0), 5)
        posting.cancel()
        for _ in range(500):
            if call.severed is not None:
                break
            await asyncio.sleep(0.01)
    assert call.severed is not None
    assert not admission.held


@pytest.mark.parametrize("path", ["/v2/models/m/generate", "/v2/models/m/infer", "/v1/completions"])
@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_a_body_that_is_not_compressed_as_it_says_is_a_bad_request(http, caplog, path, coding):
    async with http.post(path, data=b"{}", headers={"Content-Encoding": coding}) as answer:
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert "cannot be decoded" in str((await answer.json())["error"])
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}) as answer:
        assert answer.status == 200
    assert not caplog.records


async def test_a_small_body_that_becomes_a_large_one_is_refused(http):
    bomb = gzip.compress(b" " * 10_000_000)
    async with http.post("/v2/models/m/generate", data=bomb, headers={"Content-Encoding": "gzip"}) as answer:
        assert (len(bomb) < 2**16, answer.status) == (True, 413)


async def test_body_over_the_limit_is_refused(http):
    async with http.post("/v2/models/m/generate", data=b"x" * (2**16 + 1)) as answer:
        assert answer.status == 413
        assert "error" in await answer.json()


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000])
async def test_numbers_of_thousands_of_digits_are_bad_requests(http, digits):
    headers = {"Inference-Header-Content-Length": digits}
    for post in (
        http.post(f"/v2/models/m/versions/{digits}/generate", json={"text_input": "hi"}),
        http.post("/v2/models/m/infer", data=b"{}", headers=headers),
        http.post("/v2/models/m/infer", data=f'{{"inputs": [{{"shape": [{digits}]}}]}}'),
    ):
        async with post as answer:
            assert answer.status == 400
            assert "error" in await answer.json()


async def test_receipts_and_status(http, upstream):
    upstream.script(FakeEngine(deaths=[2]))
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}) as answer:
        stream = answer.headers["Triton-Stream-Id"]
    async with http.get(f"/v2/cluster/receipts/{stream}") as answer:
        receipts = (await answer.json())["receipts"]
    assert [receipt["kind"] for receipt in receipts] == ["warm", "resumed"]
    async with http.get("/v2/cluster/receipts?limit=1") as answer:
        listed = (await answer.json())["receipts"]
    assert [receipt["kind"] for receipt in listed] == ["resumed"]
    assert [receipt["stream"] for receipt in receipts] == [stream, stream]
    assert [receipt["stream"] for receipt in listed] == [stream[:8]]  # the whole id is a capability
    async with http.get(f"/v2/cluster/receipts/{stream[:8]}") as answer:
        assert answer.status == 404
    async with http.get("/v2/cluster/receipts?limit=" + "9" * 5000) as answer:
        assert len((await answer.json())["receipts"]) == 2
    async with http.get("/v2/cluster/receipts/nope") as answer:
        assert answer.status == 404
    async with http.get("/v2/cluster/status") as answer:
        assert await answer.json() == {"servers": 2}


async def test_metrics(http, gateway):
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}):
        pass
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as answer,
    ):
        text = await answer.text()
    assert 'serverless_triton_gateway_requests_total{model="m"} 1.0' in text
    assert 'serverless_triton_gateway_first_token_seconds_count{kind="warm",model="m"} 1.0' in text


async def test_a_repository_that_is_away_is_unavailable_and_no_model_is_gone(http, repository):
    async with http.get("/v2/models/m") as answer:
        assert answer.status == 200
    aside = repository.rename(repository.with_name("aside"))
    for method, path in (
        ("POST", "/v2/repository/models/m/load"),
        ("GET", "/v2/models/later"),
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/models/stats"),
    ):
        async with http.request(method, path) as answer:
            assert (answer.status, await answer.json()) == (503, {"error": "the model repository cannot be read now"})
            assert answer.headers["Retry-After"] == "5"
    aside.rename(repository)
    async with http.post("/v2/repository/models/m/load") as answer:
        assert answer.status == 200
