"""Keys, rights and models of their own, with unmodified clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from dataclasses import replace

import aiohttp
import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc.aio
import tritonclient.http
import yaml
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.openapi import document
from serverless_triton.scheduler.log_lines import fields_of
from tests.integration.gateway.conftest import SETTINGS, two_servers
from tests.unit.gateway.samples import infer_request

BEARER = {"authorization": "Bearer user"}
ADMIN = {"authorization": "Bearer root"}


def write_keys(file, **keys):
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **rest} for name, rest in keys.items()
    ]
    file.write_text(yaml.safe_dump({"keys": entries}))


@pytest.fixture
def keys_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    write_keys(file, user={"models": ["m", "onnx"]}, root={"models": ["*"], "admin": True})
    return file


@pytest.fixture
async def gateway(repository, admission, upstream, keys_file):
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=replace(SETTINGS, keys_file=keys_file),
        cluster_status=two_servers,
    )
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def client(gateway):
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        yield client


@pytest.fixture
async def stub(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


def text():
    tensor = tritonclient.grpc.aio.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"hi"], dtype=object))
    return [tensor]


async def test_grpc_health_needs_no_key(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()


async def test_grpc_without_a_key_is_unauthenticated(client):
    for asking in (client.get_server_metadata(), client.get_model_config("m"), client.infer("m", text())):
        with pytest.raises(InferenceServerException, match="no API key was given") as caught:
            await asking
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


async def test_every_grpc_method_but_health_wants_a_key(stub):
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.name in ("ServerLive", "ServerReady"):
            continue
        call = getattr(stub, method.name)
        message = getattr(pb, method.input_type.name)()
        streams = method.name == "ModelStreamInfer"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call(iter([message])).read() if streams else call(message))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name


async def test_a_caller_without_a_key_holds_no_call_open_by_sending_no_message(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")()
        assert await asyncio.wait_for(call.code(), 10.0) is grpc.StatusCode.UNAUTHENTICATED


async def test_grpc_with_a_key_is_served(client):
    assert (await client.get_server_metadata(headers=BEARER)).name == "triton"
    assert (await client.infer("m", text(), headers={"x-api-key": "user"})).as_numpy("text_output")[0] == b"hi 0 1 2 3"


async def test_who_wakes_a_model_and_puts_it_to_sleep_is_logged_by_name(client, keys_file, caplog):
    caplog.set_level(logging.INFO, logger="serverless_triton.scheduler.gateway.service")
    digest = hashlib.sha256(b"s3cr3t").hexdigest()
    write_keys(keys_file, root={"models": ["*"], "admin": True, "tenant": "operations", "sha256": digest})
    for change in (client.load_model, client.unload_model):
        await change("m", headers={"authorization": "Bearer s3cr3t"})
    acts = [fields_of(record) for record in caplog.records if record.name.endswith("gateway.service")]
    assert acts == [
        {"event": f"model_{act}", "model": "m", "tenant": "operations", "key": "root"} for act in ("load", "unload")
    ]
    assert "s3cr3t" not in caplog.text


async def test_grpc_load_wants_the_admin_right(client, admission):
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="the key 'user' has no admin right") as caught:
            await change("m", headers=BEARER)
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    await client.load_model("m", headers=ADMIN)
    assert admission.ready_models() == {"m"}


async def test_a_message_of_a_caller_without_a_key_is_not_even_parsed(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff no message")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_open_stream_ends_with_its_key(gateway, keys_file, stub):
    call = stub.ModelStreamInfer(metadata=(("authorization", "Bearer user"),))
    await call.write(infer_request())
    assert not (await call.read()).error_message
    write_keys(keys_file, root={"models": ["*"]})
    await call.write(infer_request(client_id="late"))
    refused = await call.read()
    assert "not known" in refused.error_message
    assert refused.infer_response.id == "late"
    await call.done_writing()


async def test_a_model_of_others_is_as_if_it_were_not_there(client):
    hidden = client.get_model_metadata("sleeper", headers=BEARER)
    absent = client.get_model_metadata("nope", headers=BEARER)
    errors = [await asyncio.wait_for(failure(asking), 5) for asking in (hidden, absent)]
    assert errors[0].status() == errors[1].status() == "StatusCode.NOT_FOUND"
    assert errors[0].message() == errors[1].message().replace("nope", "sleeper")
    assert not await client.is_model_ready("sleeper", headers=BEARER)
    assert (await failure(client.infer("sleeper", text(), headers=BEARER))).status() == "StatusCode.NOT_FOUND"
    index = await client.get_model_repository_index(headers=BEARER)
    assert {model.name for model in index.models} == {"m", "onnx"}
    statistics = await client.get_inference_statistics(headers=BEARER)
    assert {model.name for model in statistics.model_stats} == {"m", "onnx"}


async def failure(asking):
    with pytest.raises(InferenceServerException) as caught:
        await asking
    return caught.value


async def test_tritonclient_http_with_and_without_a_key(gateway):
    def run():
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{gateway.http_port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException, match="no API key was given") as caught:
                client.get_model_metadata("m")
            assert caught.value.status() == "401"
            assert client.get_model_metadata("m", headers=BEARER)["name"] == "m"
            with pytest.raises(InferenceServerException, match="no admin right") as caught:
                client.load_model("m", headers=BEARER)
            assert caught.value.status() == "403"
            with pytest.raises(InferenceServerException, match="'sleeper' is not found") as caught:
                client.get_model_config("sleeper", headers=BEARER)
            assert caught.value.status() == "404"
            assert {model["name"] for model in client.get_model_repository_index(headers=BEARER)} == {"m", "onnx"}

    await asyncio.to_thread(run)


async def test_every_route_wants_a_key_where_the_document_says_so(http, gateway):
    for path, item in document()["paths"].items():
        if path == "/metrics":  # on a port of its own
            continue
        url = re.sub(r"\{\w+\}", "1", path)
        for method in item.keys() & {"get", "post"}:
            async with http.request(method, url) as answer:
                open_to_all = item[method].get("security") == []
                assert (answer.status == 401) is not open_to_all, (method, path)
                if not open_to_all:
                    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_every_route_with_a_403_wants_the_admin_right(http):
    for path, item in document()["paths"].items():
        for method in item.keys() & {"get", "post"}:
            async with http.request(method, re.sub(r"\{\w+\}", "1", path), headers=BEARER) as answer:
                assert (answer.status == 403) is ("403" in item[method]["responses"]), (method, path)


async def test_a_request_waits_in_its_tenants_name(gateway, client, http, admission):
    await client.infer("m", text(), headers=BEARER, priority=2)
    async with http.post("/v2/models/m/generate", json={"text_input": "hi", "priority": 3}, headers=ADMIN):
        pass
    url = f"http://127.0.0.1:{gateway.http_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="user", max_retries=0) as openai_client:
        await openai_client.completions.create(model="m", prompt="hi")
    assert admission.claims == [("user", 2), ("root", 3), ("user", 0)]


async def test_a_stream_belongs_to_the_tenant_that_made_it(http, keys_file):
    other = {"x-api-key": "other"}
    mate = {"x-api-key": "mate"}
    write_keys(
        keys_file,
        user={"models": ["*"], "tenant": "t"},
        mate={"models": ["*"], "tenant": "t"},
        other={"models": ["*"]},
        root={"models": ["*"], "admin": True},
    )
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}, headers=BEARER) as answer:
        stream = answer.headers["Triton-Stream-Id"]
    seen = {}
    for name, headers in (("user", BEARER), ("mate", mate), ("other", other), ("root", ADMIN)):
        async with http.get(f"/v2/cluster/receipts/{stream}", headers=headers) as answer:
            seen[name] = (answer.status, await answer.text())
    assert [seen[name][0] for name in ("user", "mate", "other", "root")] == [200, 200, 404, 200]
    async with http.get("/v2/cluster/receipts/nobodys", headers=other) as answer:
        assert (answer.status, await answer.text()) == seen["other"]
    async with http.get("/v2/cluster/receipts", headers=BEARER) as answer:
        assert answer.status == 403


async def test_a_key_sees_the_outlook_of_its_own_models(http):
    for model, headers, status in (("m", BEARER, 200), ("sleeper", BEARER, 404), ("sleeper", ADMIN, 200)):
        async with http.get(f"/v2/cluster/outlook/{model}", headers=headers) as answer:
            assert answer.status == status, model


async def test_admin_sees_the_cluster(http):
    async with http.get("/v2/cluster/status", headers=ADMIN) as answer:
        assert (answer.status, await answer.json()) == (200, {"servers": 2})


@pytest.mark.parametrize(
    "path", ["/v2/cluster%2fstatus", "//v2/cluster/status", "/v2/./cluster/status", "/V2/cluster/status"]
)
async def test_a_path_that_is_written_otherwise_gives_no_admin_right(gateway, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: user\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).split()[1] in (b"403", b"404")
    writer.close()


async def test_an_unknown_path_is_nothing_to_strangers(http):
    async with http.get("/nowhere") as answer:
        assert answer.status == 401


async def test_openai_without_a_key_of_this_gateway(gateway):
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{gateway.http_port}/v1", api_key="none", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="not known here") as caught:
            await client.models.list()
    assert (caught.value.type, caught.value.code, caught.value.param) == (
        "invalid_request_error",
        "invalid_api_key",
        None,
    )


@pytest.mark.parametrize(
    ("metrics_host", "key", "status"),
    [
        ("127.0.0.1", None, 200),
        ("0.0.0.0", None, 401),
        ("0.0.0.0", "nobody", 401),
        ("0.0.0.0", "user", 403),
        ("0.0.0.0", "prometheus", 200),
        ("0.0.0.0", "root", 200),
    ],
)
async def test_metrics_beyond_loopback_want_a_key_with_their_right(
    repository, admission, upstream, keys_file, metrics_host, key, status
):
    write_keys(
        keys_file,
        user={"models": ["*"]},
        prometheus={"models": [], "metrics": True},
        root={"models": [], "admin": True},
    )
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=replace(SETTINGS, keys_file=keys_file, metrics_host=metrics_host),
    )
    await gateway.start()
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{gateway.metrics_port}") as session,
            session.get("/metrics", headers=headers) as answer,
        ):
            assert answer.status == status
            assert ("serverless_triton_gateway_open_streams" in await answer.text()) == (status == 200)
    finally:
        await gateway.stop()


async def test_openai_with_a_key_sees_its_models_only(gateway):
    url = f"http://127.0.0.1:{gateway.http_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="user", max_retries=0) as client:
        assert [model.id for model in (await client.models.list()).data] == ["m"]
        answer = await client.completions.create(model="m", prompt="hi")
        assert answer.choices[0].text == " 0 1 2 3"
        with pytest.raises(openai.NotFoundError, match="The model `sleeper` does not exist") as caught:
            await client.completions.create(model="sleeper", prompt="hi")
        assert caught.value.code == "model_not_found"


async def curl(gateway, path, *options):
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}"),
        *options,
        f"http://127.0.0.1:{gateway.http_port}{path}",
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    body, _, status = said.decode().rpartition("\n")
    return int(status), body


async def test_curl(gateway):
    assert (await curl(gateway, "/v2/health/live"))[0] == 200
    status, body = await curl(gateway, "/v2/models/m/generate", "-d", '{"text_input": "hi"}')
    assert (status, json.loads(body)["error"][:24]) == (401, "no API key was given: se")
    status, body = await curl(
        gateway, "/v2/models/m/generate", "-d", '{"text_input": "hi"}', "-H", "Authorization: Bearer user"
    )
    assert (status, json.loads(body)["text_output"]) == (200, "hi 0 1 2 3")
    status, body = await curl(gateway, "/v1/models", "-H", "X-API-Key: user", "-H", "Authorization: Bearer root")
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


async def test_a_key_is_never_logged(gateway, client, http, caplog):
    caplog.set_level("DEBUG")
    secret = "a-secret-that-must-not-be-seen"
    async with http.get("/v2", headers={"X-API-Key": secret}):
        pass
    await failure(client.get_server_metadata(headers={"x-api-key": secret}))
    assert secret not in caplog.text
