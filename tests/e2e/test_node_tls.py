"""A cluster whose nodes speak TLS with its scheduler alone."""

from __future__ import annotations

import http.client
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.cli.local_cluster import LocalCluster
from tests.certificates import Authority
from tests.e2e.conftest import DRAM_BYTES

PROMPT = "The three primary colours are"


def is_live(cluster: LocalCluster, channel: grpc.Channel) -> bool:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(cluster.triton_headers().items())
    return bool(stub.ServerLive(pb.ServerLiveRequest(), metadata=metadata, timeout=10).live)


def test_models_start_and_answer_over_it_and_triton_serves_nobody_without_a_certificate(
    repository: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("node")
    files = {"certificate_file": str(certificate), "key_file": str(key), "ca_file": str(authority.file)}
    with LocalCluster(tmp_path, repository, servers=1, node_tls=files, dram_bytes=DRAM_BYTES) as cluster:
        heard = cluster.generate("alpha", PROMPT, max_tokens=4)
        assert (heard.errors, len(heard.output_ids)) == ([], 4)

        ca = authority.file.read_bytes()
        mutual = grpc.ssl_channel_credentials(ca, key.read_bytes(), certificate.read_bytes())
        with grpc.secure_channel(cluster.triton_address(), mutual) as channel:
            assert is_live(cluster, channel)
        arguments = Path(f"/proc/{cluster.pid('server-0.triton')}/cmdline").read_bytes().decode().split("\0")
        assert "--allow-http=false" in arguments  # which has no TLS and would take the secret that stands here
        assert not any(argument.startswith("--http-") for argument in arguments)
        port = next(int(said.split("=")[1]) for said in arguments if said.startswith("--metrics-port="))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200  # by which a container's health is watched
        connection.close()
        for stranger in (
            grpc.insecure_channel(cluster.triton_address()),
            grpc.secure_channel(cluster.triton_address(), grpc.ssl_channel_credentials(ca)),
        ):
            with stranger, pytest.raises(grpc.RpcError) as caught:
                is_live(cluster, stranger)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
