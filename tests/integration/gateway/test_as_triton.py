"""The gateway answers every call of the table as a real tritonserver 2.51 did, but for the exceptions named there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, FakeUpstream
from tests.integration.gateway.conftest import make_gateway
from tests.recordings.asking import Asker
from tests.recordings.calls import Call, all_calls
from tests.recordings.exceptions import EXCEPTIONS, RECORDED
from tests.recordings.http_calls import SHORT, post
from tests.recordings.models import add_bystanders, add_served

CALLS = tuple(all_calls())


@pytest.fixture(scope="module")
def admission() -> FakeAdmission:
    return FakeAdmission()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def asker(tmp_path_factory: pytest.TempPathFactory, admission: FakeAdmission) -> AsyncIterator[Asker]:
    """As the recorded server was: `m` and `plain` run and have been asked."""
    repository = tmp_path_factory.mktemp("models")
    add_served(repository)
    add_bystanders(repository)
    for name in ("m", "plain"):
        await admission.warm(name, timeout_s=1.0)
    gateway = make_gateway(repository, admission, FakeUpstream(FakeEngine()))
    await gateway.start()
    async with Asker(f"127.0.0.1:{gateway.http_port}", f"127.0.0.1:{gateway.grpc_port}") as asker:
        for name in ("m", "plain", "sleeper"):
            await asker.ask(post("once", f"/v2/models/{name}/generate", SHORT))
        yield asker
    await gateway.stop()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_it_answers_as_triton_did(asker: Asker, admission: FakeAdmission, call: Call):
    await admission.release("sleeper", timeout_s=1.0)  # the call before may have woken it
    exception = EXCEPTIONS.get(call.name)
    assert await asker.ask(call) == (exception.answer if exception else RECORDED[call.name])


def test_every_call_is_recorded_once():
    names = [call.name for call in CALLS]
    assert sorted(names) == sorted(RECORDED)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_one(name: str):
    assert EXCEPTIONS[name].answer != RECORDED[name]
