"""schemathesis makes requests of the OpenAPI document, sound ones and ones that break it, and holds every answer to it.

`FUZZ_EXAMPLES=500 pytest tests/integration/gateway/test_openapi_fuzzed.py` makes more of them for each operation.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, FakeUpstream
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.openapi import document
from tests.integration.gateway.conftest import make_gateway
from tests.unit.gateway.samples import add_model

if sys.version_info < (3, 11):
    pytest.skip("schemathesis needs Python 3.11", allow_module_level=True)

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
# What Triton answers with 500, although it is the client's mistake; and requests that gave themselves no time.
CLIENTS_OWN = re.compile(
    r"failed to load '|Unable to open shared memory region|longer than the \S+ s that it was given"
)
OWN_PORT = "/metrics"
SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [
    (method, path)
    for path, item in document()["paths"].items()
    for method in ("get", "post")
    if method in item and path != OWN_PORT
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a gateway over fakes, in a thread of its own: schemathesis blocks."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "m")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gateway = asyncio.run_coroutine_threadsafe(_started(repository), loop).result(30)
    yield f"http://127.0.0.1:{gateway.http_port}"
    asyncio.run_coroutine_threadsafe(gateway.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _started(repository: Path) -> Gateway:
    gateway = make_gateway(repository, FakeAdmission(), FakeUpstream(FakeEngine()))
    await gateway.start()
    return gateway


def no_fault_of_the_servers(_context: Any, response: Any, _case: Any) -> None:
    assert response.status_code < 500 or response.status_code == 501 or CLIENTS_OWN.search(response.text)


CHECKS = (no_fault_of_the_servers, status_code_conformance, content_type_conformance, response_schema_conformance)


def ask_for_a_model_that_is_there(case: Any) -> None:
    """Made-up names are refused before anything else is looked at."""
    for where in (case.path_parameters, case.body):
        if isinstance(where, dict):
            where |= {name: value for name, value in {"model": "m", "version": "1"}.items() if name in where}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_those_of_the_document(address: str, method: str, path: str):
    operation = SCHEMA[path][method]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, is_known=st.booleans())
    def answered(case: Any, is_known: bool) -> None:
        if is_known:
            ask_for_a_model_that_is_there(case)
        case.call_and_validate(base_url=address, checks=CHECKS)
        good = operation.schema["/v2/models/{model}/generate"]["post"].Case(
            path_parameters={"model": "m"}, body={"text_input": "hi"}, media_type="application/json"
        )
        assert good.call(base_url=address).status_code == 200

    answered()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("/v2/models/{model}/generate_stream", {"text_input": "hi", "stream": True}),
    ],
)
def test_events_are_those_of_the_document(address: str, path: str, body: dict[str, Any]):
    """Made-up requests hardly ever ask for them."""
    parameters = {"model": "m"} if "{model}" in path else {}
    case = SCHEMA[path]["post"].Case(path_parameters=parameters, body=body, media_type="application/json")
    response = case.call_and_validate(base_url=address, checks=CHECKS)
    assert response.status_code == 200
    assert response.content.count(b"data: ") >= 4
