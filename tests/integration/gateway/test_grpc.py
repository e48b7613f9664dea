"""The gRPC side with unmodified tritonclient.grpc and tritonclient.grpc.aio."""

from __future__ import annotations

import asyncio
import queue
from dataclasses import replace

import aiohttp
import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.errors import LoadFailed, NoCapacity
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, token_response
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import host_and_port
from serverless_triton.scheduler.gateway.tensors import read_request_tensors, string_tensor
from serverless_triton.scheduler.gateway.upstream import UpstreamError
from tests.integration.gateway.conftest import SETTINGS, make_gateway
from tests.unit.gateway.samples import flag, infer_request


def inputs(module, text=b"hi", **flags):
    tensor = module.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=object))
    found = [tensor]
    for name, value in flags.items():
        tensor = module.InferInput(name, [1], "BOOL")
        tensor.set_data_from_numpy(np.array([value]))
        found.append(tensor)
    return found


@pytest.fixture
async def client(gateway):
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        yield client


@pytest.fixture
async def stub(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def stream(client, requests):
    async def generate():
        for request in requests:
            yield request

    found = []
    async for result, error in client.stream_infer(generate()):
        if error:
            raise error
        found.append(result)
    return found


async def test_server_is_taken_for_triton(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    metadata = await client.get_server_metadata()
    assert metadata.name == "triton"
    assert "statistics" in metadata.extensions


async def test_models_that_do_not_run_are_described(client):
    assert await client.is_model_ready("sleeper")
    assert not await client.is_model_ready("nope")
    metadata = await client.get_model_metadata("sleeper")
    assert [t.name for t in metadata.inputs][:2] == ["text_input", "stream"]
    assert "resume_token_ids" not in [t.name for t in metadata.inputs]
    assert "attempt" not in [t.name for t in metadata.outputs]
    config = (await client.get_model_config("sleeper")).config
    assert config.model_transaction_policy.decoupled
    statistics = await client.get_inference_statistics("sleeper")
    assert statistics.model_stats[0].inference_count == 0


async def test_streamed_text(client):
    results = await stream(client, [{"model_name": "m", "inputs": inputs(tritonclient.grpc.aio, stream=True)}])
    assert [r.as_numpy("text_output")[0] for r in results] == [b" 0", b" 1", b" 2", b" 3"]
    final = [r.get_response().parameters["triton_final_response"].bool_param for r in results]
    assert final == [False, False, False, True]
    assert len({r.get_response().parameters["stream_id"].string_param for r in results}) == 1


async def test_whole_text_with_the_prompt_before_it(client):
    results = await stream(client, [{"model_name": "m", "inputs": inputs(tritonclient.grpc.aio)}])
    assert [r.as_numpy("text_output")[0] for r in results] == [b"hi 0 1 2 3"]


async def test_unary_infer_gives_the_whole_text(client):
    result = await client.infer("m", inputs(tritonclient.grpc.aio, exclude_input_in_output=True), request_id="r9")
    assert result.as_numpy("text_output")[0] == b" 0 1 2 3"
    assert result.get_response().id == "r9"
    assert result.get_output("output_ids") is None


async def test_outputs_on_request(client):
    wanted = [tritonclient.grpc.aio.InferRequestedOutput(name) for name in ("output_ids", "prompt_ids")]
    result = await client.infer("m", inputs(tritonclient.grpc.aio), outputs=wanted)
    assert result.as_numpy("output_ids").tolist() == [0, 1, 2, 3]
    assert result.as_numpy("prompt_ids").tolist() == [7]
    assert result.as_numpy("text_output") is None


async def test_return_flags(client):
    flags = {"return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    result = await client.infer("m", inputs(tritonclient.grpc.aio, **flags))
    assert result.as_numpy("finish_reason")[0] == b"length"
    assert result.as_numpy("num_input_tokens")[0] == 1
    assert result.as_numpy("num_output_tokens")[0] == 4


async def test_many_requests_on_one_stream_keep_their_ids(client):
    requests = [
        {"model_name": name, "inputs": inputs(tritonclient.grpc.aio, stream=True), "request_id": f"{name}{index}"}
        for index in range(20)
        for name in ("m", "sleeper")
    ]
    results = await stream(client, requests)
    texts = {}
    for result in results:
        texts.setdefault(result.get_response().id, []).append(result.as_numpy("text_output")[0])
    assert len(texts) == 40
    assert {tuple(text) for text in texts.values()} == {(b" 0", b" 1", b" 2", b" 3")}


async def test_synchronous_client_streams_with_callbacks(gateway):
    def run():
        answers = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer(
                "m", inputs(tritonclient.grpc, stream=True), enable_empty_final_response=True, request_id="a"
            )
            found = []
            while not found or not found[-1].get_response().parameters["triton_final_response"].bool_param:
                result, error = answers.get(timeout=10)
                assert error is None
                found.append(result)
            client.stop_stream()
        return [result.as_numpy("text_output")[0] for result in found]

    assert await asyncio.to_thread(run) == [b" 0", b" 1", b" 2", b" 3"]


async def test_error_on_a_shared_stream_leaves_the_others_alone(stub):
    async def requests():
        yield infer_request(flag("stream"), model="nope", client_id="bad")
        yield infer_request(flag("stream"), client_id="good")

    messages = [message async for message in stub.ModelStreamInfer(requests())]
    bad = [m for m in messages if m.error_message]
    assert [m.error_message for m in bad] == ["Request for unknown model: 'nope' is not found"]
    assert bad[0].infer_response.id == "bad"
    assert len([m for m in messages if m.infer_response.id == "good"]) == 4


async def test_bad_requests_on_a_shared_stream_are_invalid_and_leave_the_others_alone(stub):
    deep = b'{"stop": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    bad = {"deep": infer_request(string_tensor("sampling_parameters", deep), client_id="deep")}
    bad["version"] = infer_request(client_id="version")
    bad["version"].model_version = "9" * 5000

    async def requests():
        for request in bad.values():
            yield request
        yield infer_request(flag("stream"), client_id="good")

    messages = [message async for message in stub.ModelStreamInfer(requests())]
    errors = {m.infer_response.id: m.error_message for m in messages if m.error_message}
    assert errors.keys() == bad.keys()
    assert "internal" not in " ".join(errors.values())
    assert len([m for m in messages if m.infer_response.id == "good"]) == 4
    for request in bad.values():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_bug_that_one_request_finds_is_that_requests_alone(stub, upstream, caplog):
    answer = FakeEngine()

    def broken_for_one(call):
        if b"bug" in read_request_tensors(call.request)["text_input"].raw:
            raise ZeroDivisionError
        return answer(call)

    upstream.script(broken_for_one)

    async def requests():
        yield infer_request(flag("stream"), text=b"bug", client_id="bad")
        yield infer_request(flag("stream"), client_id="good")

    messages = [message async for message in stub.ModelStreamInfer(requests())]
    assert [m.infer_response.id for m in messages if m.error_message == "internal error"] == ["bad"]
    assert len([m for m in messages if m.infer_response.id == "good"]) == 4
    assert "client_request_failed model=m" in caplog.text


async def test_an_upstream_internal_error_is_heard_once(stub, upstream):
    def fail(call):
        yield token_response(attempt=call.attempt, first_position=0, output_ids=[1], text="x", prompt_ids=[7])
        yield UpstreamError("INTERNAL", "Received RST_STREAM with error code 2")

    upstream.script(fail)
    messages = [m async for m in stub.ModelStreamInfer(iter([infer_request(flag("stream"))]))]
    assert [m.error_message for m in messages] == ["", "Received RST_STREAM with error code 2"]
    assert len(upstream.calls) == 1


async def test_error_ends_the_stream_of_a_client_that_asked_for_it(stub):
    async def requests():
        yield infer_request(model="nope")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.ModelStreamInfer(requests(), metadata=(("triton_grpc_error", "true"),)):
            pass
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("nope", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("broken", "NOT_FOUND", "Request for unknown model: 'broken' is not found: config.pbtxt"),
        ("../m", "INVALID_ARGUMENT", "invalid model name"),
    ],
)
async def test_models_that_cannot_be_asked(stub, model, code, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_request(model=model))
    assert caught.value.code().name == code
    assert words in caught.value.details()


@pytest.mark.parametrize(
    ("error", "code"), [(LoadFailed("truncated"), "UNAVAILABLE"), (NoCapacity("full"), "RESOURCE_EXHAUSTED")]
)
async def test_failed_admission_has_its_code(stub, admission, error, code):
    admission.refuse(error)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_request())
    assert (caught.value.code().name, caught.value.details()) == (code, str(error))
    assert (await stub.ModelInfer(infer_request())).id == "c1"


async def test_client_cancel_reaches_upstream(manual_gateway, by_hand, admission):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{manual_gateway.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([infer_request(flag("stream"))]))
        upstream_call = await asyncio.wait_for(by_hand.call(0), 5)
        upstream_call.tokens(0, 1)
        assert (await call.read()).infer_response.id == "c1"
        call.cancel()
        await _until(lambda: upstream_call.severed is not None)
    assert not admission.held
    assert len(manual_gateway.journal) == 0


async def test_client_that_hangs_up_cancels_all_its_requests(manual_gateway, by_hand, admission):
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{manual_gateway.grpc_port}")
    call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
        iter([infer_request(flag("stream")) for _ in range(3)])
    )
    reading = asyncio.ensure_future(call.read())
    upstream_calls = [await asyncio.wait_for(by_hand.call(index), 5) for index in range(3)]
    await channel.close(None)
    await _until(lambda: all(c.severed is not None for c in upstream_calls))
    assert not admission.held
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await reading


async def test_load_and_unload_warm_and_release(client):
    index = {model.name: model for model in (await client.get_model_repository_index()).models}
    assert (index["sleeper"].state, index["sleeper"].reason) == ("UNAVAILABLE", "unloaded")
    assert "config.pbtxt" in index["broken"].reason
    await client.load_model("sleeper")
    index = {model.name: model for model in (await client.get_model_repository_index()).models}
    assert index["sleeper"].state == "READY"
    await client.unload_model("sleeper")
    index = {model.name: model for model in (await client.get_model_repository_index()).models}
    assert index["sleeper"].state == "UNAVAILABLE"


async def test_the_index_says_why_a_running_models_newest_definition_is_not_served(client, admission):
    await client.load_model("m")
    admission.failed["m"] = "model.safetensors: is truncated"
    index = {model.name: model for model in (await client.get_model_repository_index()).models}
    assert (index["m"].state, index["m"].reason) == ("READY", "model.safetensors: is truncated")


async def test_the_index_says_why_a_model_is_served_as_it_was_before(client, repository):
    await client.load_model("m")
    (repository / "m" / "config.pbtxt").write_text("name: {")
    index = {model.name: model for model in (await client.get_model_repository_index()).models}
    assert index["m"].state == "READY"
    assert "config.pbtxt: 1:" in index["m"].reason


async def test_load_refuses_what_triton_refuses(client, stub):
    with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll from model repository"):
        await client.load_model("nope")
    await client.unload_model("nope")
    with pytest.raises(InferenceServerException, match="unrecognized load parameter"):
        await client.load_model("m", config="{}")
    with pytest.raises(grpc.aio.AioRpcError, match="specification is not supported"):
        await stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="x"))


async def test_statistics_of_unknown_and_counted_models(client):
    await client.infer("m", inputs(tritonclient.grpc.aio))
    statistics = (await client.get_inference_statistics("m")).model_stats[0]
    assert statistics.inference_stats.success.count == 1
    assert statistics.inference_stats.success.ns > 0
    assert len((await client.get_inference_statistics()).model_stats) == 3
    with pytest.raises(InferenceServerException, match="requested model 'nope' is not available"):
        await client.get_inference_statistics("nope")


async def test_private_token_state_is_refused(stub):
    request = infer_request()
    request.parameters["attempt"].int64_param = 3
    with pytest.raises(grpc.aio.AioRpcError, match="reserved for the gateway"):
        await stub.ModelInfer(request)


async def test_trace_and_log_settings_are_read_and_set_to_what_they_are(client):
    settings = await client.get_trace_settings()
    assert list(settings.settings["trace_level"].value) == ["OFF"]
    assert (await client.update_trace_settings(settings={"trace_level": ["OFF"]})) == settings
    with pytest.raises(InferenceServerException, match="the server does not support trace"):
        await client.update_trace_settings("m", settings={"trace_level": ["TIMESTAMPS"]})
    log = await client.get_log_settings()
    assert log.settings["log_info"].bool_param
    assert (await client.update_log_settings({"log_info": True})) == log
    with pytest.raises(InferenceServerException, match="the server does not support dynamic logging"):
        await client.update_log_settings({"log_info": False})


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_there_are_no_regions_of_shared_memory(client, kind):
    status = getattr(client, f"get_{kind}_shared_memory_status")
    assert not (await status()).regions
    with pytest.raises(InferenceServerException, match=f"Unable to find {kind} shared memory region: 'r'"):
        await status("r")
    await getattr(client, f"unregister_{kind}_shared_memory")("r")
    await getattr(client, f"unregister_{kind}_shared_memory")()


async def test_shared_memory_cannot_be_registered(client):
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '/x'"):
        await client.register_system_shared_memory("r", "/x", 8)
    with pytest.raises(InferenceServerException, match="failed to register shared memory region: invalid args"):
        await client.register_cuda_shared_memory("r", b"AAAA", 0, 8)


@pytest.mark.parametrize("service", [b"", b"\n\x1einference.GRPCInferenceService", b"\n\x04nope"])
async def test_health_is_the_servers_whatever_service_is_asked_for(gateway, service):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(service) == b"\x08\x01"


async def test_health_is_not_watched_which_clients_take_for_healthy(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in channel.unary_stream("/grpc.health.v1.Health/Watch")(b""):
                pass
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_says_not_serving_while_the_server_is_not_ready(repository, admission, upstream):
    can_serve = [False]
    gateway = make_gateway(repository, admission, upstream, can_serve=lambda: can_serve[0])
    await gateway.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x02"
        can_serve[0] = True
        assert await check(b"") == b"\x08\x01"
    await gateway.stop()


async def test_deaths_are_invisible_to_the_client(client, upstream):
    upstream.script(FakeEngine(deaths=[1, 3]))
    result = await client.infer("m", inputs(tritonclient.grpc.aio, exclude_input_in_output=True))
    assert result.as_numpy("text_output")[0] == b" 0 1 2 3"
    assert [call.attempt for call in upstream.calls] == [0, 1, 2]


async def _until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not happen within 5 s")


async def test_a_gateway_on_ipv6_serves_grpc_and_http(repository, admission, upstream):
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=replace(SETTINGS, host="::1"),
    )
    await gateway.start()
    try:
        async with tritonclient.grpc.aio.InferenceServerClient(f"[::1]:{gateway.grpc_port}") as client:
            assert await client.is_server_ready()
        url = f"http://{host_and_port('::1', gateway.http_port)}/v2"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 200
    finally:
        await gateway.stop()


async def test_a_burst_of_calls_waits_its_turn(gateway):
    """gRPC's own limit cancels calls beyond a thousand that nobody has looked at yet."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = await asyncio.gather(*(stub.ServerLive(pb.ServerLiveRequest()) for _ in range(5000)))
    assert all(answer.live for answer in answers)
