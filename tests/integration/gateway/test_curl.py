"""curl, as it is installed, is a client of everything over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="there is no curl")
WAIT_S = 20.0


@dataclass(frozen=True)
class Said:
    """What curl printed of the last response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        read: dict[str, object] = json.loads(self.body)
        return read


async def started(*arguments: str) -> asyncio.subprocess.Process:
    assert CURL is not None
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(CURL, "-sS", *arguments, stdin=pipe, stdout=pipe, stderr=pipe)


async def curl(gateway, path: str, *arguments: str, body: bytes | None = None) -> Said:
    """With `body`, a POST of it."""
    given = ["-i", *arguments, f"http://127.0.0.1:{gateway.http_port}{path}"]
    process = await started(*given, *(["--data-binary", "@-"] if body is not None else []))
    printed, complaint = await asyncio.wait_for(process.communicate(body), WAIT_S)
    assert process.returncode == 0, complaint.decode()
    return read(printed)


def read(printed: bytes) -> Said:
    """Without interim responses, such as 100 Continue."""
    head, _, body = printed.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status < 200:
        return read(body)
    lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    return Said(status, {name.lower(): value for name, value in lines}, body)


async def test_health_and_metadata(gateway):
    assert (await curl(gateway, "/v2/health/ready")).status == 200
    assert (await curl(gateway, "/v2")).json()["name"] == "triton"
    head = await curl(gateway, "/v2/health/live", "-I")
    assert (head.status, head.body) == (200, b"")


async def test_generate_tells_the_stream_its_id(gateway):
    said = await curl(gateway, "/v2/models/m/generate", body=b'{"text_input": "hi"}')
    assert (said.status, said.json()["text_output"]) == (200, "hi 0 1 2 3")
    assert len(said.headers["triton-stream-id"]) == 22


async def test_a_client_of_http_1_0_is_answered(gateway):
    said = await curl(gateway, "/v2/models/m/generate", "-0", body=b'{"text_input": "hi"}')
    assert (said.status, said.json()["text_output"]) == (200, "hi 0 1 2 3")


async def test_a_compressed_body(gateway):
    body = gzip.compress(b'{"text_input": "hi"}')
    said = await curl(gateway, "/v2/models/m/generate", "-H", "Content-Encoding: gzip", body=body)
    assert said.json()["text_output"] == "hi 0 1 2 3"


async def test_infer_with_binary_tensors(gateway):
    text = struct.pack("<I", 2) + b"hi"
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(text)}}
    wanted = {"name": "output_ids", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    said = await curl(gateway, "/v2/models/m/infer", "-H", length, body=head + text)
    assert said.status == 200
    assert said.body[int(said.headers["inference-header-content-length"]) :] == struct.pack("<4i", 0, 1, 2, 3)


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(gateway):
    body = b'{"text_input": "' + b"a" * 2**21 + b'"}'  # so large that curl asks first
    said = await curl(gateway, "/v2/models/m/generate", "-H", "Expect: 100-continue", body=body)
    assert (said.status, said.headers["content-type"]) == (413, "application/json")


async def test_a_typed_error(gateway):
    said = await curl(gateway, "/v2/models/nope/generate", body=b'{"text_input": "hi"}')
    assert said.status == 404
    assert "nope" in str(said.json()["error"])


@asynccontextmanager
async def streaming(gateway, path: str, body: dict[str, object]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await started("-N", "-d", json.dumps(body), f"http://127.0.0.1:{gateway.http_port}{path}")
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


async def event(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
    assert await asyncio.wait_for(process.stdout.readline(), WAIT_S) == b"\n"
    return line.decode().removeprefix("data: ").strip()


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/v2/models/m/generate_stream", {"text_input": "hi", "stream": True}, None),
        ("/v1/completions", {"model": "m", "prompt": "hi", "stream": True}, "[DONE]"),
    ],
)
async def test_events_come_as_they_are_made(manual_gateway, by_hand, path, body, end):
    async with streaming(manual_gateway, path, body) as process:
        call = await asyncio.wait_for(by_hand.call(0), WAIT_S)
        call.tokens(0, 1)
        assert " 1" in await event(process)
        call.tokens(1, 2, finish_reason="stop")
        assert " 2" in await event(process)
        if end is not None:
            assert await event(process) == end
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 0


async def test_a_curl_that_is_killed_cancels_its_stream(manual_gateway, by_hand, admission):
    body = {"text_input": "hi", "stream": True}
    async with streaming(manual_gateway, "/v2/models/m/generate_stream", body) as process:
        call = await asyncio.wait_for(by_hand.call(0), WAIT_S)
        call.tokens(0, 1)
        await event(process)
        process.kill()
    await asyncio.wait_for(given_up(call, admission), WAIT_S)


async def given_up(call, admission) -> None:
    while call.severed is None or admission.held:  # noqa: ASYNC110 - of fakes that tell nobody
        await asyncio.sleep(0.01)
