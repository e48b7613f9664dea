"""The zygote, told what to do by hand; it never really forks here."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serverless_triton.backend import zygote as zygote_module
from serverless_triton.backend.channel import Channel
from serverless_triton.backend.messages import Fork, Learn
from serverless_triton.backend.zygote import Zygote, ZygoteConfig


@pytest.fixture
def zygote() -> Iterator[tuple[Zygote, Channel, Channel]]:
    """The zygote, its end of an agent's connection, and the agent's."""
    nowhere = Path("nowhere")
    zygote = Zygote(ZygoteConfig(socket=nowhere, agent_socket=nowhere, store_socket=nowhere))
    ours, theirs = (Channel(end) for end in socket.socketpair())
    zygote._selector.register(ours, selectors.EVENT_READ, ours)
    yield zygote, ours, theirs
    for channel in (ours, theirs):
        channel.close()
    zygote._selector.close()
    zygote._listener.close()
    gc.unfreeze()


def test_a_fork_that_the_kernel_refuses_leaves_the_zygote_and_its_workers_alone(
    zygote: tuple[Zygote, Channel, Channel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse() -> int:
        raise OSError(12, "Cannot allocate memory")

    it, ours, agent = zygote
    forks: list[int] = []
    monkeypatch.setattr(os, "fork", refuse)
    agent.send(Fork())
    it._serve(ours)
    assert "fork_failed error=[Errno 12]" in caplog.text
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or 4711)
    agent.send(Fork())
    it._serve(ours)
    assert forks == [1]


@pytest.mark.parametrize("parameters", [{}, {"checkpoint": "/nowhere", "checkpoint_bytes": "1", "kv_cache_bytes": "1"}])
def test_a_model_that_cannot_be_learned_is_only_a_warning(
    zygote: tuple[Zygote, Channel, Channel], parameters: dict[str, str], caplog: pytest.LogCaptureFixture
):
    class Broken:
        def builder(self, name: str) -> Broken:
            raise ZeroDivisionError

    it, ours, agent = zygote
    it._engines = Broken()  # type: ignore[assignment]
    agent.send(Learn(parameters=parameters))
    it._serve(ours)
    assert "learn_failed" in caplog.text


def test_a_worker_keeps_no_connection_of_its_zygote_and_ends_none(
    zygote: tuple[Zygote, Channel, Channel], monkeypatch: pytest.MonkeyPatch
):
    it, ours, agent = zygote
    held: list[int] = []
    worker = SimpleNamespace(run=lambda: held.append(ours.fileno()))
    exits: list[int] = []
    monkeypatch.setattr(zygote_module, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(zygote_module, "Worker", lambda *_, **__: worker)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", exits.append)
    with ours._socket.dup() as zygotes:
        it._become_worker(os.getppid())
        assert (held, exits) == ([-1], [0])
        zygotes.sendall(b"x")
        assert agent._socket.recv(1) == b"x"


def test_an_agent_that_leaves_is_forgotten(zygote: tuple[Zygote, Channel, Channel]):
    it, ours, agent = zygote
    agent.close()
    it._serve(ours)
    assert ours.fileno() == -1
    assert not it._selector.get_map()
