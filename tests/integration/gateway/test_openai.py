"""OpenAI's API with the official client, unmodified."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity, StreamLost
from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine, token_response
from serverless_triton.scheduler.gateway.tensors import read_request_tensors
from serverless_triton.scheduler.gateway.upstream import UpstreamError
from tests.unit.gateway.samples import CONFIG, add_model

CHAT = [{"role": "user", "content": "hi"}]


def client_of(gateway) -> AsyncOpenAI:
    url = f"http://127.0.0.1:{gateway.http_port}/v1"
    return AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


@pytest.fixture
async def client(gateway):
    async with client_of(gateway) as client:
        yield client


@pytest.fixture
async def manual_client(manual_gateway):
    async with client_of(manual_gateway) as client:
        yield client


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


def sent(upstream, index=0):
    return read_request_tensors(upstream.calls[index].request)


def sampling(upstream, index=0):
    return json.loads(sent(upstream, index)["sampling_parameters"].strings()[0])


async def test_models_are_those_of_the_repository_that_are_served(client, repository):
    models = (await client.models.list()).data
    assert [model.id for model in models] == ["m", "sleeper"]
    found = await client.models.retrieve("sleeper")
    assert (found.object, found.created) == ("model", int((repository / "sleeper/config.pbtxt").stat().st_mtime))
    with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
        await client.models.retrieve("nope")


async def test_a_completion(client, upstream):
    answer = await client.completions.create(model="m", prompt="hi", max_tokens=4)
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "m", " 0 1 2 3")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.to_dict() == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    assert answer._request_id == answer.id
    assert sent(upstream)["text_input"].strings() == [b"hi"]


async def test_a_chat(client, upstream):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": []},
    ]
    answer = await client.chat.completions.create(model="m", messages=messages)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" 0 1 2 3", "length")
    assert answer.usage.total_tokens == 5
    assert json.loads(sent(upstream)["messages"].strings()[0]) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a\nb", "name": "ann"},
        {"role": "assistant", "content": "c"},
    ]


async def test_a_streamed_completion(client):
    stream = await client.completions.create(model="m", prompt="hi", stream=True)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks] == [" 0", " 1", " 2", " 3"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_streamed_chat_with_usage(client):
    options = {"include_usage": True}
    stream = await client.chat.completions.create(model="m", messages=CHAT, stream=True, stream_options=options)
    *chunks, last = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas] == ["", " 0", " 1", " 2", " 3", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["length"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 1, 4)


async def test_the_clients_own_stream_helper_puts_a_chat_together(client, upstream):
    """It takes an end by length for a failure."""
    said = token_response(attempt=0, first_position=0, output_ids=[1], text="Hello", finish_reason="stop")
    upstream.script(lambda call: iter([said]))
    async with client.chat.completions.stream(model="m", messages=CHAT) as stream:
        final = await stream.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == ("Hello", "stop")


async def test_events_on_the_wire_end_with_done(http):
    async with http.post("/v1/completions", json={"model": "m", "prompt": "hi", "stream": True}) as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Triton-Stream-Id"]
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0][6:])["choices"][0] == {
        "index": 0, "text": " 0", "logprobs": None, "finish_reason": None
    }  # fmt: skip


async def test_text_that_is_held_back_makes_no_chunk(manual_client, by_hand):
    asking = asyncio.ensure_future(manual_client.completions.create(model="m", prompt="hi", stream=True))
    call = await asyncio.wait_for(by_hand.call(0), 5)
    for position, (text, reason) in enumerate([("", None), ("ab", None), ("", "stop")]):
        call.send(token_response(attempt=0, first_position=position, output_ids=[1], text=text, finish_reason=reason))
    call.end()
    chunks = [chunk async for chunk in await asking]
    assert [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks] == [("ab", None), ("", "stop")]


async def test_openais_defaults_sample_and_give_a_chat_all_the_room(client, upstream):
    await client.completions.create(model="m", prompt="hi")
    await client.chat.completions.create(model="m", messages=CHAT)
    first, second = sampling(upstream, 0), sampling(upstream, 1)
    assert first.pop("seed") != second.pop("seed")  # the gateway's, so that a resumed stream goes on drawing
    assert first == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16}
    assert second == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}


async def test_sampling_parameters_reach_the_backend(client, upstream):
    more = {"top_k": 5, "ignore_eos": True}
    await client.chat.completions.create(
        model="m", messages=CHAT, temperature=0, top_p=0.5, seed=7, stop="x", max_completion_tokens=3, extra_body=more
    )
    expected = {"temperature": 0.0, "top_p": 0.5, "seed": 7, "stop": ["x"], "max_tokens": 3, **more}
    assert sampling(upstream) == expected


async def test_a_negative_seed_is_a_seed_too(client, upstream):
    for _ in range(2):
        await client.completions.create(model="m", prompt="hi", seed=-1)
    assert sampling(upstream, 0)["seed"] == sampling(upstream, 1)["seed"] > 0


async def test_a_prompt_of_token_ids(client, upstream):
    await client.completions.create(model="m", prompt=[5, 6])
    assert sent(upstream)["input_ids"].numbers() == (5, 6)


async def test_several_prompts_with_several_choices(client, upstream):
    answer = await client.completions.create(model="m", prompt=["a", "b"], n=2, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {" 0 1 2 3"}
    asked = [(sent(upstream, i)["text_input"].strings()[0], sampling(upstream, i)["seed"]) for i in range(4)]
    assert sorted(asked) == [(b"a", 3), (b"a", 4), (b"b", 3), (b"b", 4)]
    assert answer.usage.to_dict() == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}


async def test_choices_are_streamed_side_by_side(client):
    stream = await client.chat.completions.create(model="m", messages=CHAT, n=3, stream=True)
    texts = ["", "", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [" 0 1 2 3"] * 3


async def test_the_synchronous_client(gateway):
    def ask():
        with OpenAI(base_url=f"http://127.0.0.1:{gateway.http_port}/v1", api_key="none") as client:
            return [c.choices[0].text for c in client.completions.create(model="m", prompt="hi", stream=True)]

    assert await asyncio.to_thread(ask) == [" 0", " 1", " 2", " 3"]


async def test_deaths_are_invisible(client, upstream):
    upstream.script(FakeEngine(deaths=[2]))
    answer = await client.chat.completions.create(model="m", messages=CHAT)
    assert answer.choices[0].message.content == " 0 1 2 3"
    assert sent(upstream, 1)["input_ids"].numbers() == (7,)  # the prompt's ids, as the first replica told them


CHAT_BODY = {"model": "m", "messages": CHAT}
COMPLETION_BODY = {"model": "m", "prompt": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("completions", {"model": "m"}, "prompt", "'prompt' is missing"),
        ("completions", {"prompt": "hi"}, "model", "'model' is missing"),
        ("completions", {"model": 3, "prompt": "hi"}, "model", "must be a model's name, not 3"),
        ("completions", {"model": "m", "prompt": []}, "prompt", "a list of token ids"),
        ("completions", {"model": "m", "prompt": [True]}, "prompt", "a list of token ids"),
        ("completions", {"model": "m", "prompt": ["a", 1]}, "prompt", "a list of token ids"),
        ("completions", {"model": "m", "prompt": [2**40]}, "prompt", "a list of token ids"),
        ("completions", {"model": "m", "prompt": "\ud800"}, "prompt", "not a string"),
        ("completions", {"model": "m", "prompt": ["a"] * 129}, "prompt", "at most 128"),
        ("completions", {"model": "m", "prompt": ["a", "b"], "n": 65}, "n", "from 1 to 64"),
        ("completions", {**COMPLETION_BODY, "max_tokens": 0}, "max_tokens", "a whole number from 1, not 0"),
        ("completions", {**COMPLETION_BODY, "max_tokens": 10**400}, "max_tokens", "not a number of that size"),
        ("completions", {**COMPLETION_BODY, "temperature": 2.5}, "temperature", "from 0 to 2, not 2.5"),
        ("completions", {**COMPLETION_BODY, "top_p": 0}, "top_p", "above 0"),
        ("completions", {**COMPLETION_BODY, "stop": [""]}, "stop", "none empty"),
        ("completions", {**COMPLETION_BODY, "seed": 1.5}, "seed", "a whole number"),
        ("completions", {**COMPLETION_BODY, "stream": "yes"}, "stream", "true or false, not a string"),
        ("completions", {**COMPLETION_BODY, "stream_options": {}}, "stream_options", "needs 'stream'"),
        ("completions", {**COMPLETION_BODY, "echo": True}, "echo", "not supported"),
        ("completions", {**COMPLETION_BODY, "logprobs": 0}, "logprobs", "not supported"),
        ("completions", {**COMPLETION_BODY, "frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ("completions", {**COMPLETION_BODY, "temprature": 1}, "temprature", "Unrecognized request argument"),
        ("completions", {**COMPLETION_BODY, "\ud800": 1}, "\\ud800", "Unrecognized request argument"),
        ("completions", {**COMPLETION_BODY, "top_k": -2}, "top_k", "or -1, not -2"),
        ("completions", {**COMPLETION_BODY, "stop_token_ids": [[1]]}, "stop_token_ids", "token ids, not a list"),
        ("chat/completions", {"model": "m", "messages": []}, "messages", "at least one message"),
        ("chat/completions", {"model": "m", "messages": ["hi"]}, "messages[0]", "must be an object"),
        ("chat/completions", {"model": "m", "messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        (
            "chat/completions",
            {"model": "m", "messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "takes no tools",
        ),
        (
            "chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "takes no images",
        ),
        (
            "chat/completions",
            {"model": "m", "messages": [*CHAT, {"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[1].tool_calls",
            "not supported",
        ),
        ("chat/completions", {**CHAT_BODY, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ("chat/completions", {**CHAT_BODY, "response_format": {"type": "json_object"}}, "response_format", "not supp"),
        ("chat/completions", {**CHAT_BODY, "chat_template": "{{ 1 }}"}, "chat_template", "Unrecognized"),
        ("chat/completions", {**CHAT_BODY, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "one of them"),
        ("chat/completions", {**CHAT_BODY, "model": "old"}, "model", "takes no chats: .* 'messages'"),
        ("chat/completions", {**CHAT_BODY, "model": "nope"}, "model", "The model `nope` does not exist"),
        ("chat/completions", {**CHAT_BODY, "model": "../m"}, "model", "The model `../m` does not exist"),
        ("chat/completions", {**CHAT_BODY, "model": "onnx"}, None, "only 'serverless' models generate text"),
    ],
)
async def test_what_bad_requests_get(http, repository, admission, path, body, param, words):
    no_chats = [line for line in CONFIG.splitlines() if "messages" not in line]
    add_model(repository, "old", "\n".join(no_chats))
    async with http.post(f"/v1/{path}", data=json.dumps(body)) as answer:
        error = (await answer.json())["error"]
    assert answer.status == (404 if "does not exist" in words else 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] or param is None
    assert re.search(words, error["message"])
    assert not admission.admitted


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 60_000, b'{"model": NaN}', b"\xff"])
async def test_bodies_that_are_no_json_objects(http, body):
    async with http.post("/v1/chat/completions", data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("error", "kind", "status", "code"),
    [
        (NoCapacity("full"), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (LoadFailed("no"), openai.InternalServerError, 503, "service_unavailable"),
        (LoadFailed("no", code="INVALID_ARGUMENT"), openai.BadRequestError, 400, None),
        (AdmissionTimeout("late"), openai.InternalServerError, 504, "timeout"),
        (StreamLost("gone"), openai.InternalServerError, 503, "service_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_token_have_a_status(client, admission, error, kind, status, code, stream):
    admission.refuse(error)
    with pytest.raises(kind) as caught:
        await client.completions.create(model="m", prompt="hi", stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, code)


async def test_a_failure_in_the_middle_is_raised_by_the_client(manual_client, by_hand):
    asking = asyncio.ensure_future(manual_client.completions.create(model="m", prompt="hi", stream=True))
    call = await asyncio.wait_for(by_hand.call(0), 5)
    call.tokens(0, 1)
    stream = await asking
    call.fail("INTERNAL", "engine bug")
    assert (await anext(stream)).choices[0].text == " 1"
    with pytest.raises(openai.APIError, match="engine bug") as caught:
        await anext(stream)
    assert caught.value.type == "server_error"


async def test_one_choices_failure_ends_the_others(manual_client, by_hand, admission):
    asking = asyncio.ensure_future(manual_client.completions.create(model="m", prompt="hi", n=3))
    calls = [await asyncio.wait_for(by_hand.call(index), 5) for index in range(3)]
    calls[1].fail("INVALID_ARGUMENT", "too long")
    with pytest.raises(openai.BadRequestError, match="too long"):
        await asking
    assert all(call.severed for call in calls)
    assert not admission.held


@pytest.mark.parametrize("options", [{"n": 1}, {"n": 2}, {"n": 1, "stream": True}, {"n": 2, "stream": True}])
async def test_a_client_that_hangs_up_cancels_every_choice(manual_client, by_hand, admission, options):
    asking = asyncio.ensure_future(manual_client.completions.create(model="m", prompt="hi", **options))
    calls = [await asyncio.wait_for(by_hand.call(index), 5) for index in range(options["n"])]
    asking.cancel()
    for _ in range(500):
        if all(call.severed is not None for call in calls):
            break
        await asyncio.sleep(0.01)
    assert all(call.severed for call in calls)
    assert not admission.held


async def test_a_slow_reader_slows_its_replica(manual_gateway, by_hand):
    """The gateway's own buffers and the sockets' fill, and then nothing more is read from upstream."""
    async with aiohttp.ClientSession(read_bufsize=1024) as session:
        url = f"http://127.0.0.1:{manual_gateway.http_port}/v1/completions"
        posting = asyncio.ensure_future(session.post(url, json={"model": "m", "prompt": "hi", "stream": True}))
        call = await asyncio.wait_for(by_hand.call(0), 5)
        text = "x" * 1_000_000
        for position in range(200):
            call.send(token_response(attempt=0, first_position=position, output_ids=[1], text=text))
        answer = await posting
        left = await settled(lambda: call.unread)
        assert left > 100
        answer.close()


async def settled(value):
    """What it is once it has not changed for a while."""
    last, since = value(), 0
    while since < 20:
        await asyncio.sleep(0.02)
        now = value()
        last, since = now, since + 1 if now == last else 0
    return last


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/nope", 404, "Invalid URL (GET /v1/nope)"),
        ("GET", "/v1/chat/completions", 405, "Not allowed to GET on /v1/chat/completions"),
        ("POST", "/v1/completions", 413, "Too Large"),
    ],
)
async def test_what_is_wrong_with_the_call_itself_has_openais_shape(http, method, path, status, words):
    async with http.request(method, path, data=b"x" * (2**16 + 1) if status == 413 else None) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["type"]) == (status, "invalid_request_error")
    assert words in error["message"]


async def test_errors_of_other_paths_keep_tritons_shape(http):
    async with http.get("/v2/models/nope") as answer:
        assert isinstance((await answer.json())["error"], str)


async def test_streams_leave_nothing_in_the_journal(client, gateway, upstream):
    upstream.script(FakeEngine())
    await client.completions.create(model="m", prompt=["a", "b"], n=2)
    upstream.script(lambda call: iter([UpstreamError("INVALID_ARGUMENT", "no")]))
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="m", prompt=["a", "b"], n=2)
    assert len(gateway.journal) == 0
