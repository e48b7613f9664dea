"""What effects say of nodes that cannot be reached."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from tritonclient.grpc import model_config_pb2

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.effects import EffectFailed, EngineOrder
from serverless_triton.scheduler.node_links import NodeLinks, tells_of_link
from serverless_triton.scheduler.triton_effects import ServerAddresses, TritonEffects

S0 = ServerName("s0")


async def test_why_a_node_was_not_reached_is_for_the_log_and_its_address_for_nobody_else(caplog):
    effects = TritonEffects(
        {S0: ServerAddresses(triton="127.0.0.1:9", agent="127.0.0.1:9")},
        lambda model, definition: model_config_pb2.ModelConfig(),
        time.monotonic,
        links=NodeLinks(),
        epoch=lambda: 1,
        load_timeout_s=5.0,
        release_timeout_s=5.0,
    )
    order = EngineOrder(epoch=1, replica=ReplicaId("r"), model="m", parameters={})
    for asking in (effects.start_engine(S0, order), effects.load_foreign(S0, "m")):
        with caplog.at_level(logging.WARNING), pytest.raises(EffectFailed) as failed:
            await asking
        assert (failed.value.code, str(failed.value)) == ("UNAVAILABLE", "the connection to its server broke")
    await effects.close()
    assert caplog.text.count("127.0.0.1:9") >= 2


@pytest.mark.parametrize(
    "words",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.3:8001: Connection refused",
        "ipv6:%5Bfe80::1%5D:8001: Socket closed",
        "DNS resolution failed for node-3.inner:8001: C-ares status is not ARES_SUCCESS",
    ],
)
def test_grpcs_words_of_a_connection_are_told_from_others(words):
    assert tells_of_link(words)


@pytest.mark.parametrize("words", ["failed to load 'm', no version is available", "input ipv4 of 'm' is missing", ""])
def test_a_servers_own_words_are_its_own(words):
    assert not tells_of_link(words)


async def test_nothing_is_begun_while_the_lease_may_have_run_out():
    acting = False
    effects = TritonEffects(
        {S0: ServerAddresses(triton="127.0.0.1:9", agent="127.0.0.1:9")},
        lambda model, definition: model_config_pb2.ModelConfig(),
        time.monotonic,
        links=NodeLinks(),
        epoch=lambda: 1,
        may_act=lambda: acting,
        load_timeout_s=5.0,
        release_timeout_s=0.2,
    )
    with pytest.raises(EffectFailed, match="may not lead any more"):
        await effects.unload_model(S0, "m")
    loading = asyncio.ensure_future(effects.load_foreign(S0, "m"))
    await asyncio.sleep(0.1)
    assert not loading.done()
    acting = True
    with pytest.raises(EffectFailed, match="the connection to its server broke"):  # it was sent
        await loading
    await effects.close()
