"""Whatever is sent over HTTP is answered, wrong requests with a typed error, and the next one is served.

`BAD_REQUESTS=10000 pytest tests/integration/gateway/test_bad_requests.py` sends more of them.
"""

from __future__ import annotations

import json
import os

import aiohttp
from yarl import URL

from tests.integration.gateway.bad_requests import BadRequest, bad_request

COUNT = int(os.environ.get("BAD_REQUESTS", "2000"))
TYPED = {400, 404, 413}
UNKNOWN_CODING = 501


def typed(bad: BadRequest) -> set[int]:
    """What may be said of it; only infer refuses codings as Triton does."""
    unknown = bad.path.endswith("/infer") and bad.headers.get("Content-Encoding") == "nope"
    return TYPED | {UNKNOWN_CODING} if unknown else TYPED


def is_typed(path: str, text: str) -> bool:
    error = json.loads(text)["error"]
    return set(error) == {"message", "type", "param", "code"} if path.startswith("/v1/") else isinstance(error, str)


async def test_every_one_is_answered_and_a_good_one_is_served_right_after(gateway, caplog):
    answered = 0
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        for seed in range(COUNT):
            bad = bad_request(seed)
            async with session.post(URL(bad.path, encoded=True), data=bad.body, headers=bad.headers) as answer:
                text = await answer.text()
            assert answer.status in {200, *typed(bad)}, (seed, bad, text)
            assert answer.status == 200 or is_typed(bad.path, text), (seed, bad, text)
            answered += answer.status != 200
            if seed % 10 == 0:
                async with session.post("/v2/models/m/generate", json={"text_input": "hi"}) as good:
                    assert (good.status, (await good.json())["text_output"]) == (200, "hi 0 1 2 3"), (seed, bad)
    assert answered > COUNT // 3
    assert len(gateway.journal) == 0
    assert not caplog.records
