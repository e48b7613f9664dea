"""TLS towards clients: unmodified ones with it are served, those without it or without a certificate are not."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace

import aiohttp
import grpc
import openai
import pytest
import tritonclient.grpc.aio
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.errors import CertificateUnusable
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import ServerTLS
from tests.certificates import Authority
from tests.integration.gateway.conftest import SETTINGS

SOON_S = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("other"))


def made(repository, admission, upstream, tls):
    settings = replace(SETTINGS, tls=tls)
    return Gateway(catalogue=Catalogue(repository), admission=admission, upstream=upstream, settings=settings)


@pytest.fixture(scope="module")
def tls(authority):
    certificate, key = authority.issue("gateway")
    return ServerTLS(certificate_file=certificate, key_file=key)


@pytest.fixture
async def gateway(repository, admission, upstream, tls):
    gateway = made(repository, admission, upstream, tls)
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def mutual(repository, admission, upstream, tls, authority):
    """Wants a certificate of its clients."""
    gateway = made(repository, admission, upstream, replace(tls, client_ca_file=authority.file))
    await gateway.start()
    yield gateway
    await gateway.stop()


async def curl(url, *options):
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}"),
        *options,
        url,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def is_live(port, credentials):
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return (await stub.ServerLive(pb.ServerLiveRequest(), timeout=SOON_S)).live


async def test_tritonclient_grpc(gateway, authority):
    url = f"127.0.0.1:{gateway.grpc_port}"
    async with tritonclient.grpc.aio.InferenceServerClient(
        url, ssl=True, root_certificates=str(authority.file)
    ) as client:
        assert (await client.get_model_metadata("m")).name == "m"


async def test_tritonclient_http(gateway, authority):
    def run():
        url, known = f"127.0.0.1:{gateway.http_port}", {"ca_certs": str(authority.file)}
        with tritonclient.http.InferenceServerClient(url, ssl=True, ssl_options=known) as client:
            assert client.get_model_metadata("m")["name"] == "m"

    await asyncio.to_thread(run)


async def test_openai(gateway, authority):
    known = ssl.create_default_context(cafile=authority.file)
    async with openai.AsyncOpenAI(
        base_url=f"https://127.0.0.1:{gateway.http_port}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(verify=known),
    ) as client:
        stream = await client.completions.create(model="m", prompt="hi", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == " 0 1 2 3"


async def test_curl_and_metrics(gateway, authority):
    for port, path in ((gateway.http_port, "/v2/health/live"), (gateway.metrics_port, "/metrics")):
        assert await curl(f"https://127.0.0.1:{port}{path}", "--cacert", authority.file) == (0, "200")
        assert await curl(f"http://127.0.0.1:{port}{path}") != (0, "200")


async def test_a_client_that_knows_another_authority_does_not_trust_it(gateway, other_authority):
    code, _ = await curl(f"https://127.0.0.1:{gateway.http_port}/v2", "--cacert", other_authority.file)
    assert code == 60  # curl's word for it
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await is_live(gateway.grpc_port, grpc.ssl_channel_credentials(other_authority.file.read_bytes()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_tls_is_not_served_over_grpc(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=SOON_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_the_client_is_wanted_where_the_settings_say_so(mutual, authority, other_authority):
    url, known = f"https://127.0.0.1:{mutual.http_port}/v2", ("--cacert", authority.file)
    certificate, key = authority.issue("client")
    assert await curl(url, *known, "--cert", certificate, "--key", key) == (0, "200")
    assert (await curl(url, *known))[0] != 0
    strangers, strangers_key = other_authority.issue("client")
    assert (await curl(url, *known, "--cert", strangers, "--key", strangers_key))[0] != 0

    ca = authority.file.read_bytes()
    assert await is_live(mutual.grpc_port, grpc.ssl_channel_credentials(ca, key.read_bytes(), certificate.read_bytes()))
    for pair in ((), (strangers_key.read_bytes(), strangers.read_bytes())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await is_live(mutual.grpc_port, grpc.ssl_channel_credentials(ca, *pair))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_handshake_that_does_not_come_is_not_waited_for(repository, admission, upstream, tls):
    settings = replace(SETTINGS, tls=tls, connections=replace(SETTINGS.connections, handshake_timeout_s=0.2))
    gateway = Gateway(catalogue=Catalogue(repository), admission=admission, upstream=upstream, settings=settings)
    await gateway.start()
    try:
        for port in (gateway.http_port, gateway.grpc_port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(), SOON_S) == b""
            writer.close()
    finally:
        await gateway.stop()


async def test_files_that_cannot_be_used_are_named_at_once(repository, admission, upstream, tls, authority):
    other_key = authority.issue("somebody")[1]
    nowhere = tls.key_file.with_name("nowhere")
    for wrong, words in (
        (replace(tls, key_file=other_key), "somebody.key"),
        (replace(tls, certificate_file=nowhere), "nowhere"),
        (replace(tls, client_ca_file=nowhere), "nowhere"),
        (replace(tls, client_ca_file=tls.key_file), "gateway.key"),
    ):
        with pytest.raises(CertificateUnusable, match=rf"gateway\.tls: cannot use .*{words}"):
            made(repository, admission, upstream, wrong)


async def test_plain_http_stays_plain_without_tls(repository, admission, upstream):
    gateway = made(repository, admission, upstream, None)
    await gateway.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{gateway.http_port}/v2") as answer:
        assert answer.status == 200
    await gateway.stop()
