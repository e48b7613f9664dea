"""s3:// against moto, a server with S3's interface, and against one that is slow or broken: a proxy before it."""

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

import boto3
import pytest

from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import CheckpointChanged, CheckpointNotFound, RemoteUnavailable
from tests.integration.loader.remote_samples import Tier, checkpoint_bytes, hashes_of, quick, shard_index
from tests.integration.loader.tcp_proxy import (
    Behaviour,
    Proxy,
    answering,
    cut_after,
    passing,
    proxy_before,
    silent_after,
)

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_REGION": "us-east-1"}
SERVE = (
    "import sys, werkzeug.serving\nfrom moto.server import DomainDispatcherApplication, create_backend_app\n"
    "app = DomainDispatcherApplication(create_backend_app)\n"
    "server = werkzeug.serving.make_server('127.0.0.1', 0, app, threaded=True)\n"
    "print(server.server_port, flush=True)\nserver.serve_forever()\n"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=endpoint).Bucket("models")
    bucket.create()
    yield bucket
    bucket.objects.delete()


def test_a_sharded_checkpoint_in_a_bucket_loads_verified(bucket):
    shards = {
        "model-1.safetensors": checkpoint_bytes(CHUNK_BYTES + 5, name="weight0"),
        "model 2.safetensors": checkpoint_bytes(700, name="weight1"),
    }
    for name, content in shards.items():
        bucket.put_object(Key=f"some/prefix/{name}", Body=content)
        bucket.put_object(Key=f"some/prefix/{name}.chunks.json", Body=hashes_of(content))
    bucket.put_object(Key="some/prefix/model.safetensors.index.json", Body=shard_index(*shards))
    contents, result = Tier().load("s3://models/some/prefix")
    assert contents == [shards["model 2.safetensors"], shards["model-1.safetensors"]]
    assert (result.tier, result.verified) == ("remote", True)


def test_an_object_that_was_replaced_since_it_was_opened_has_changed(bucket):
    bucket.put_object(Key="model.safetensors", Body=checkpoint_bytes(1000))
    tier = Tier()
    checkpoint = tier.opener.open("s3://models/model.safetensors")
    bucket.put_object(Key="model.safetensors", Body=checkpoint_bytes(1000, seed=1))
    with pytest.raises(CheckpointChanged, match=r"s3://models/model\.safetensors"):
        tier.load_checkpoint(checkpoint)


def test_a_key_or_a_bucket_that_is_not_there_is_not_found(bucket):
    for url in ("s3://models/nothing", "s3://models/no.safetensors", "s3://no-such-bucket/x"):
        with pytest.raises(CheckpointNotFound, match=url):
            Tier().opener.open(url)


def test_an_endpoint_that_is_away_is_unavailable_and_no_key_is_told(bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RemoteUnavailable) as failure:
        Tier(settings=quick(open_patience_s=0.5)).opener.open("s3://models/model.safetensors")
    assert "a-secret-key" not in str(failure.value)


# A slow or broken server

URL = "s3://models/model.safetensors"
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def content(bucket) -> bytes:
    content = checkpoint_bytes(CHUNK_BYTES + 500_000)
    bucket.put_object(Key="model.safetensors", Body=content)
    bucket.put_object(Key="model.safetensors.chunks.json", Body=hashes_of(content))
    return content


@pytest.fixture
def proxy(content: bytes, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The endpoint as the loader sees it; the bucket was filled without it."""
    place = urlsplit(endpoint)
    assert place.hostname is not None
    assert place.port is not None
    with proxy_before(place.hostname, place.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def test_a_slow_bucket_is_waited_for_even_where_no_request_is_in_time(proxy: Proxy, content: bytes):
    proxy.otherwise = passing(bytes_per_second=4_000_000)
    contents, result = Tier(settings=quick(request_timeout_s=0.7, concurrency=1)).load(URL)
    assert (contents, result.verified) == ([content], True)
    assert proxy.connections > 3, "requests were ended and taken up again"


@pytest.mark.parametrize("broken", [cut_after(0), cut_after(300_000), answering(SLOW_DOWN)])
def test_a_bucket_that_breaks_off_or_has_too_much_to_do_is_asked_again(proxy: Proxy, content: bytes, broken: Behaviour):
    tier = Tier(settings=quick(concurrency=2))
    checkpoint = tier.opener.open(URL)
    proxy.plan = deque([broken] * 4)
    contents, result = tier.load_checkpoint(checkpoint)
    assert (contents, result.verified) == ([content], True)
    assert not proxy.plan


def test_a_bucket_that_falls_silent_is_asked_again(proxy: Proxy, content: bytes):
    is_over = threading.Event()
    tier = Tier(settings=quick(stall_timeout_s=0.5))
    checkpoint = tier.opener.open(URL)
    proxy.plan = deque([silent_after(0, is_over), silent_after(200_000, is_over)])
    contents, _ = tier.load_checkpoint(checkpoint)
    is_over.set()
    assert contents == [content]
    assert not proxy.plan


@pytest.mark.parametrize("broken", [cut_after(0), cut_after(100), answering(SLOW_DOWN)])
def test_a_bucket_that_stays_broken_is_unavailable_and_no_key_is_told(proxy: Proxy, content: bytes, broken: Behaviour):
    checkpoint = Tier().opener.open(URL)
    proxy.otherwise = broken
    tier = Tier(settings=quick(open_patience_s=0.5, patience_s=0.5))
    for ask in (lambda: tier.opener.open(URL), lambda: tier.load_checkpoint(checkpoint)):
        with pytest.raises(RemoteUnavailable, match=r"s3://models/model\.safetensors") as failure:
            ask()
        assert "a-secret-key" not in str(failure.value)
