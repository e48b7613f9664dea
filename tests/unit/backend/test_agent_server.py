"""The agent as a process: what it refuses to start with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serverless_triton.backend.agent_server import AgentConfig, _grpc_server, main
from serverless_triton.backend.agent_service import AgentService


def config(address: str) -> AgentConfig:
    nowhere = Path("nowhere")
    return AgentConfig(
        node="n",
        socket=nowhere,
        grpc_address=address,
        zygote_socket=nowhere,
        store_socket=nowhere,
        model_repository=nowhere,
        device_memory_bytes=1,
    )


async def test_an_address_that_another_agent_listens_on_is_refused():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    service = AgentService("n", None, None, None)  # type: ignore[arg-type]
    first = await _grpc_server(config(address), service)
    try:
        with pytest.raises(OSError, match=f"{address} is taken"):
            await _grpc_server(config(address), service)
    finally:
        await first.stop(grace=None)


def test_some_of_the_files_of_tls_are_refused_and_not_taken_for_none(capsys: pytest.CaptureFixture[str]):
    files = [f"--{name}=nowhere" for name in ("socket", "zygote-socket", "store-socket", "model-repository")]
    with pytest.raises(SystemExit):
        main(
            [
                "--node=n",
                *files,
                "--grpc-address=nowhere",
                "--device-memory-bytes=1",
                "--tls-key-file=k",
                "--tls-ca-file=c",
            ]
        )
    assert "give all of --tls-certificate-file" in capsys.readouterr().err
