"""What a node's processes say to each other, and a model's parameters."""

from __future__ import annotations

import socket
from dataclasses import asdict

import pytest

from serverless_triton.backend.channel import MAX_MESSAGE_BYTES, Channel, ChannelClosed
from serverless_triton.backend.messages import (
    Acquire,
    Cancel,
    CatchUp,
    CaughtUp,
    Freeze,
    Generate,
    Loaded,
    Message,
    ModelSpec,
    Position,
    ProtocolError,
    Stats,
    Tokens,
    decode,
    encode,
)

PARAMETERS = {"checkpoint": "/models/a", "checkpoint_bytes": "10", "kv_cache_bytes": "20"}


@pytest.mark.parametrize(
    "message",
    [
        Generate(request=1, text="héllo\n", sampling_parameters={"stop": ["a"]}, resume_token_ids=[1, 2]),
        Tokens(request=1, first_position=3, output_ids=[4], text="\u20ac", num_input_tokens=2, prompt_ids=[1, 2]),
        Acquire(model="m", parameters=PARAMETERS, replica="m-1"),
        Cancel(request=9),
        Freeze(request=9),
        CatchUp(request=1, reservation="s", attempt=2, start_position=3, input_ids=[1], resume_token_ids=[4, 5]),
        CaughtUp(request=1, held_tokens=6),
        Position(request=1, state="prefilling", held_tokens=512, total_tokens=900),
        Stats(
            running=1, waiting=2, reserved=3, kv_tokens_used=4, kv_tokens_total=5, steps=6,
            prefilled_tokens=8, preemptions=9, last_batch_tokens=10,
        ),
    ],
)  # fmt: skip
def test_a_message_comes_back_as_it_went(message: Message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"type":"Nope"}', b'{"type":"Cancel"}', b'{"type":"Cancel","request":1,"more":2}', b"\xff"],
)
def test_what_is_no_message_is_a_protocol_error_without_its_content(data: bytes):
    with pytest.raises(ProtocolError, match="not a message"):
        decode(data)


def nested(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [16, 300, *range(900, 1000, 3), 200_000])
def test_a_message_that_is_nested_too_deeply_is_refused_by_who_says_it_or_who_hears_it(levels: int):
    try:
        data = encode(Generate(request=1, text="x", sampling_parameters={"stop": nested(levels)}))
        assert encode(decode(data)) == data
    except ProtocolError:
        assert levels > 300


def test_bytes_that_are_nested_without_end_are_no_message():
    with pytest.raises(ProtocolError, match="RecursionError"):
        decode(b"[" * 200_000)


def test_an_answer_begins_after_what_is_resumed_or_caught_up():
    assert Generate(request=1, text="x", resume_token_ids=[4, 5]).next_position == 2
    assert CatchUp(request=1, reservation="s", attempt=0, start_position=3, resume_token_ids=[4]).next_position == 4


def test_spans_survive_as_lists():
    loaded = Loaded(replica="r", tier="dram", bytes=1, spans=[("a", 0.0, 1.0)])
    assert [tuple(span) for span in decode(encode(loaded)).spans] == loaded.spans  # type: ignore[union-attr]


def channels() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


def test_descriptors_travel_with_their_message():
    left, right = channels()
    ours, theirs = socket.socketpair()
    left.send(Cancel(request=1))
    left.send(Cancel(request=2), [theirs.fileno()])
    theirs.close()
    assert right.receive() == (Cancel(request=1), [])
    message, (descriptor,) = right.receive()
    assert message == Cancel(request=2)
    with socket.socket(fileno=descriptor) as arrived, ours:
        arrived.sendall(b"x")
        assert ours.recv(1) == b"x"
    left.close()
    right.close()


def test_a_peer_that_went_away_is_noticed_by_both_directions():
    left, right = channels()
    right.close()
    with pytest.raises(ChannelClosed):
        left.receive()
    with pytest.raises(ChannelClosed):
        left.send(Cancel(request=1))
    left.close()


def test_a_message_cut_off_in_the_middle_is_an_end_not_a_message():
    left, right = socket.socketpair()
    left.sendall(b"\x10\0\0\0{")
    left.close()
    with pytest.raises(ChannelClosed):
        Channel(right).receive()
    right.close()


def test_a_length_over_the_limit_is_refused_before_it_is_read():
    left, right = socket.socketpair()
    left.sendall((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(ProtocolError, match="limit"):
        Channel(right).receive()
    left.close()
    right.close()


def test_parameters_make_a_specification_and_the_replicas_name_is_no_part_of_it():
    spec = ModelSpec.parse({**PARAMETERS, "max_streams": "3", "replica": "m-1"})
    assert asdict(spec) == {
        "checkpoint": "/models/a",
        "checkpoint_bytes": 10,
        "kv_cache_bytes": 20,
        "engine": "torch",
        "dtype": "auto",
        "max_sequence_tokens": 2048,
        "max_streams": 3,
        "threads": 1,
        "files": "",
        "mode": "auto",
        "step_tokens": 512,
        "engine_options": "",
        "converted_bytes": 0,
    }
    assert spec.options == {}


def test_an_engines_own_options_are_a_json_object():
    assert ModelSpec.parse({**PARAMETERS, "engine_options": '{"load_s": 0.5}'}).options == {"load_s": 0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chekpoint": "x"}, "parameters.chekpoint is unknown"),
        ({"checkpoint": ""}, "parameters.checkpoint is missing"),
        ({"max_streams": "0"}, "parameters.max_streams is '0'"),
        ({"max_streams": "1e3"}, "use a positive whole number"),
        ({"threads": "\u0663"}, "parameters.threads"),
        ({"dtype": "int4"}, "use auto, float32"),
        ({"mode": "exactly"}, "parameters.mode is 'exactly'; use auto, exact or fast"),
        ({"step_tokens": "0"}, "parameters.step_tokens is '0'"),
        ({"engine_options": "{load_s"}, "parameters.engine_options is not JSON"),
        ({"engine_options": "[]"}, "parameters.engine_options must be a JSON object, not list"),
    ],
)
def test_parameters_that_make_no_sense_are_named_with_what_would(change: dict[str, str], words: str):
    with pytest.raises(ValueError, match=words):
        ModelSpec.parse({**PARAMETERS, **change})
