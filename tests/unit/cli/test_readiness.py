"""What the person who typed `up` is told, and when."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from serverless_triton.cli import readiness
from serverless_triton.cli.readiness import announce_listening, announce_readiness
from serverless_triton.scheduler.gateway.settings import host_and_port


class Gateway:
    """Answers as a gateway of two servers; with `wants_key` it shows its status to nobody here."""

    def __init__(self) -> None:
        self.takes_starts = [False, False]
        self.wants_key = False
        self.is_ready = False
        self.asked = asyncio.Event()

    async def status(self, _: web.Request) -> web.Response:
        self.asked.set()
        if self.wants_key:
            return web.json_response({"error": "no API key was given"}, status=401)
        return web.json_response({"servers": [{"takes_starts": takes} for takes in self.takes_starts]})

    async def ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_ready else 400)


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "POLL_S", 0.01)
    fake, app = Gateway(), web.Application()
    app.router.add_get("/v2/cluster/status", fake.status)
    app.router.add_get("/v2/health/ready", fake.ready)
    async with TestServer(app) as server:
        fake.address = f"http://127.0.0.1:{server.port}"
        yield fake


async def asked_again(gateway: Any) -> None:
    for _ in range(2):
        gateway.asked.clear()
        await asyncio.wait_for(gateway.asked.wait(), 5)


async def test_it_is_said_once_every_server_takes_starts(gateway: Any, tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").touch()
    said: list[str] = []
    telling = asyncio.ensure_future(announce_readiness(gateway.address, 2, tmp_path, said.append))
    gateway.takes_starts = [True, False]
    await asked_again(gateway)
    assert said == []
    gateway.takes_starts = [True, True]
    await asyncio.wait_for(telling, 5)
    assert said == ["ready: 2 servers; models: m; Ctrl-C ends it"]


async def test_a_gateway_that_wants_a_key_is_ready_when_it_says_so(gateway: Any, tmp_path: Path):
    said: list[str] = []
    gateway.wants_key = True
    telling = asyncio.ensure_future(announce_readiness(gateway.address, 2, tmp_path, said.append))
    await asked_again(gateway)
    assert said == []
    gateway.is_ready = True
    await asyncio.wait_for(telling, 5)
    assert len(said) == 1


async def test_a_gateway_that_wants_certificates_is_said_to_listen_once_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(readiness, "POLL_S", 0.01)
    said: list[str] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        telling = asyncio.ensure_future(announce_listening(address, 2, tmp_path, said.append))
        await asyncio.sleep(0.1)
        assert said == []
        listener.listen()
        await asyncio.wait_for(telling, 5)
    assert said[0].startswith(f"listening: {address}; it wants a client's certificate")


async def test_a_gateway_on_ipv6_is_asked(gateway: Any, tmp_path: Path):
    said: list[str] = []
    gateway.takes_starts = [True, True]
    app = web.Application()
    app.router.add_get("/v2/cluster/status", gateway.status)
    async with TestServer(app, host="::1") as server:
        address = f"http://{host_and_port('::1', server.port or 0)}"
        await asyncio.wait_for(announce_readiness(address, 2, tmp_path, said.append), 5)
    assert len(said) == 1
