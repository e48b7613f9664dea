"""A request's token state: what each id releases, and that replaying ids finds what has been released."""

from __future__ import annotations

import random
from typing import Any

import pytest

from serverless_triton.backend.engines.fake import ByteTokenizer
from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters

PROMPT = b"Say: "


def begin(room_tokens: int = 1000, **sampling: Any) -> Generation:
    return Generation(
        request=1,
        prompt_ids=list(PROMPT),
        parameters=SamplingParameters.parse({"max_tokens": 1000, **sampling}),
        tokenizer=ByteTokenizer(),
        eos_ids=[0],
        room_tokens=room_tokens,
    )


def run(generation: Generation, ids: bytes) -> list[str]:
    texts = []
    for token in ids:
        texts.append(generation.accept(token))
        if generation.finish_reason is not None:
            break
    return texts


def test_the_end_token_counts_but_is_no_text() -> None:
    generation = begin()
    assert run(generation, b"ab\0") == ["a", "b", ""]
    assert (generation.finish_reason, generation.ids) == ("stop", [97, 98, 0])


def test_ignored_end_tokens_are_text() -> None:
    generation = begin(ignore_eos=True)
    assert run(generation, b"a\0b") == ["a", "\0", "b"]
    assert generation.finish_reason is None


def test_a_stop_token_releases_what_was_held_back() -> None:
    generation = begin(stop="xyz", stop_token_ids=[ord("!")])
    assert run(generation, b"axy!") == ["a", "", "", "xy"]


def test_a_stop_string_ends_the_text_before_it() -> None:
    generation = begin(stop=["yz"])
    assert run(generation, b"axyzq") == ["a", "x", "", ""]
    assert (generation.finish_reason, generation.ids) == ("stop", list(b"axyz"))


def test_the_length_limit_releases_everything() -> None:
    generation = begin(max_tokens=4, stop=["é!"])
    assert run(generation, "aé\u4e00".encode()) == ["a", "", "", "é\ufffd"]
    assert generation.finish_reason == "length"


def test_the_smaller_of_max_tokens_and_room_is_the_limit() -> None:
    generation = begin(room_tokens=2, max_tokens=9)
    run(generation, b"abcd")
    assert (generation.ids, generation.finish_reason) == (list(b"ab"), "length")


def test_nothing_stops_before_min_tokens() -> None:
    generation = begin(min_tokens=3, stop=["a"], stop_token_ids=[ord("b")])
    assert "".join(run(generation, b"abca")) == "abc"
    assert generation.finish_reason == "stop"


def test_the_first_event_tells_the_prompt() -> None:
    generation = begin()
    first = generation.event(0, generation.accept(97))
    second = generation.event(1, generation.accept(98))
    assert (first.prompt_ids, second.prompt_ids) == (tuple(PROMPT), None)
    assert (second.first_position, second.output_ids, second.text) == (1, (98,), "b")
    assert (first.num_input_tokens, second.num_input_tokens) == (5, 5)


@pytest.mark.parametrize("seed", range(40))
def test_replaying_any_prefix_goes_on_exactly_where_the_text_was(seed: int) -> None:
    draw = random.Random(seed)
    ids = "".join(draw.choices("ab é汉👩", k=12)).encode()
    sampling = {
        "stop": ["".join(draw.choices("ab é汉", k=2)) for _ in range(2)],
        "min_tokens": draw.choice([0, 5]),
        "max_tokens": draw.choice([10, 1000]),
    }
    whole = begin(**sampling)
    texts = run(whole, ids)
    for position in range(len(texts)):
        resumed = begin(**sampling)
        resumed.replay(ids[:position])
        assert run(resumed, ids[position:]) == texts[position:]
        assert (resumed.ids, resumed.finish_reason) == (whole.ids, whole.finish_reason)


def test_without_a_tokenizer_there_are_ids_only() -> None:
    generation = Generation(
        request=1, prompt_ids=[1], parameters=SamplingParameters(), tokenizer=None, eos_ids=[0], room_tokens=9
    )
    assert [generation.accept(5), generation.accept(0)] == ["", ""]
    assert generation.finish_reason == "stop"
