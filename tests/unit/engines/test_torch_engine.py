"""The engine against transformers' own generate(), and what a request may and may not ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from serverless_triton.backend.engines.protocol import (
    CatchUpRequest,
    CaughtUpEvent,
    FailureEvent,
    GenerationRequest,
    InvalidRequest,
    ModelNotSupported,
    Reservation,
    TokenEvent,
)

PROMPTS = [[5, 9, 17, 200], [3], list(range(40, 75)), [99, 98, 97], [7] * 20]
ARCHITECTURES = (
    "llama",
    "llama-untied",
    "llama-scaled-rope",
    "qwen2",
    "qwen3",
    "mistral",
    "gpt_neox",
    "phi3",
    "qwen3_moe",
    "gpt2",
    "opt",
)


def ask(request: int, input_ids: list[int], resume: list[int] | None = None, **sampling: Any) -> GenerationRequest:
    sampling.setdefault("max_tokens", 24)
    return GenerationRequest(
        request=request, input_ids=input_ids, resume_token_ids=resume or (), sampling_parameters=sampling
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_are_those_of_generate(checkpoint: Any, drive: Callable[..., Any], name: str) -> None:
    model = checkpoint(name)
    answers = drive(model.build(), [ask(i, prompt) for i, prompt in enumerate(PROMPTS[:4])])
    assert [answers[i].ids for i in range(4)] == [model.generate(prompt, 24) for prompt in PROMPTS[:4]]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_requests_that_arrive_while_others_decode_change_nothing(
    checkpoint: Any, drive: Callable[..., Any], name: str
) -> None:
    model = checkpoint(name)
    later = {step: ask(step, prompt) for step, prompt in zip((0, 2, 3, 9, 11), PROMPTS, strict=True)}
    answers = drive(model.build(max_streams=2), later=later)
    for step, prompt in zip(later, PROMPTS, strict=True):
        assert answers[step].ids == model.generate(prompt, 24)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "opt"])
@pytest.mark.parametrize("step_tokens", [1, 7])
def test_prompts_fed_in_chunks_beside_decodes_change_nothing(
    checkpoint: Any, drive: Callable[..., Any], name: str, step_tokens: int
) -> None:
    model = checkpoint(name)
    later = {step: ask(step, prompt) for step, prompt in zip((0, 2, 3, 9, 11), PROMPTS, strict=True)}
    answers = drive(model.build(step_tokens=step_tokens), later=later)
    for step, prompt in zip(later, PROMPTS, strict=True):
        assert answers[step].ids == model.generate(prompt, 24)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_streams_that_give_up_their_memory_and_are_recomputed_change_nothing(
    checkpoint: Any, drive: Callable[..., Any], name: str
) -> None:
    model = checkpoint(name)
    engine = model.build(kv_cache_bytes=model.kv_bytes(200), step_tokens=40)
    prompts = [[i + 3] * 50 for i in range(4)]
    answers = drive(engine, [ask(i, prompt, max_tokens=40, ignore_eos=True) for i, prompt in enumerate(prompts)])
    assert engine.stats().preemptions > 0
    alone = [drive(model.build(), [ask(0, prompt, max_tokens=40, ignore_eos=True)])[0].ids for prompt in prompts]
    assert [answers[i].ids for i in range(4)] == alone
    assert engine.stats().kv_tokens_used == 0


def test_a_caught_up_stream_goes_on_where_it_is_activated(llama: Any, drive: Callable[..., Any]) -> None:
    whole = drive(llama.build(), [ask(0, PROMPTS[0], ignore_eos=True)])[0].ids
    engine = llama.build(step_tokens=5)
    key = Reservation(stream="s", attempt=1)
    for request, (first, last) in enumerate(((0, 8), (8, 15), (15, 16))):
        engine.catch_up(
            CatchUpRequest(
                request=request,
                reservation=key,
                input_ids=PROMPTS[0],
                resume_token_ids=whole[first:last],
                start_position=first,
                sampling_parameters={"max_tokens": 24, "ignore_eos": True},
            )
        )
        while engine.has_work:
            events = engine.step()
        assert events == [CaughtUpEvent(request=request, held_tokens=len(PROMPTS[0]) + last)]
    activated = GenerationRequest(
        request=9,
        input_ids=PROMPTS[0],
        resume_token_ids=whole[:16],
        sampling_parameters={"max_tokens": 24, "ignore_eos": True},
        reservation=key,
    )
    assert whole[:16] + drive(engine, [activated])[9].ids == whole
    assert engine.stats().prefilled_tokens == len(PROMPTS[0]) + 16


def test_a_budget_below_one_full_sequence_is_refused_with_what_it_needs(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match=rf"kv_cache_bytes is 5, and one .* needs {llama.kv_bytes(96)}"):
        llama.build(kv_cache_bytes=5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "seed": 11, "top_k": 50, "top_p": 0.95}])
def test_a_stream_resumed_at_any_position_goes_on_as_it_would_have(
    llama: Any, drive: Callable[..., Any], sampling: dict[str, Any]
) -> None:
    whole = drive(llama.build(), [ask(0, PROMPTS[0], ignore_eos=True, **sampling)])[0]
    engine = llama.build(max_streams=8)
    for position in range(1, len(whole.ids)):
        resumed = ask(position, PROMPTS[0], resume=whole.ids[:position], ignore_eos=True, **sampling)
        answer = drive(engine, [resumed])[position]
        assert answer.first.first_position == position
        assert whole.ids[:position] + answer.ids == whole.ids
        assert whole.text.endswith(answer.text)
        assert answer.last.finish_reason == "length"


def test_a_resume_that_had_ended_answers_at_once_without_tokens(llama: Any, drive: Callable[..., Any]) -> None:
    answers = drive(
        llama.build(),
        [
            ask(1, [5], resume=[1, 2, 3], max_tokens=3),
            ask(2, [5], resume=[1, 257], max_tokens=9),
            ask(3, [5], resume=[1, 2], max_tokens=9, stop_token_ids=[2]),
        ],
    )
    assert [(a.ids, a.text, a.last.finish_reason) for a in answers.values()] == [
        ([], "", "length"),
        ([], "", "stop"),
        ([], "", "stop"),
    ]
    assert [a.first.first_position for a in answers.values()] == [3, 2, 2]


def test_the_end_of_sequence_token_is_delivered_and_ends_the_text(llama: Any, drive: Callable[..., Any]) -> None:
    free = llama.generate(PROMPTS[0], 24)
    answer = drive(llama.build(), [ask(0, PROMPTS[0], stop_token_ids=[free[5]])])[0]
    end = free.index(free[5]) + 1
    assert answer.ids == free[:end]
    assert answer.last.finish_reason == "stop"


def test_min_tokens_keeps_the_model_from_stopping_early(llama: Any, drive: Callable[..., Any]) -> None:
    free = llama.generate(PROMPTS[0], 24)
    answer = drive(llama.build(), [ask(0, PROMPTS[0], stop_token_ids=[free[2]], min_tokens=6)])[0]
    assert free[2] not in answer.ids[:6]
    assert len(answer.ids) > 6


def test_the_sequence_limit_ends_an_answer(llama: Any, drive: Callable[..., Any]) -> None:
    answer = drive(llama.build(max_sequence_tokens=10), [ask(0, [1, 2, 3, 4], max_tokens=50, ignore_eos=True)])[0]
    assert len(answer.ids) == 6
    assert answer.last.finish_reason == "length"


def test_text_goes_in_and_comes_out(llama: Any, drive: Callable[..., Any]) -> None:
    request = GenerationRequest(request=0, text="hé", sampling_parameters={"max_tokens": 8, "ignore_eos": True})
    answer = drive(llama.build(), [request])[0]
    tokenizer = llama.build()._intake.tokenizer
    assert answer.first.prompt_ids == tuple(tokenizer.encode("hé"))
    assert answer.first.num_input_tokens == 3
    assert answer.text == tokenizer.decode(answer.ids)


def test_a_seed_decides_what_is_drawn_and_without_one_requests_differ(llama: Any, drive: Callable[..., Any]) -> None:
    seeded = drive(llama.build(), [ask(i, [4], temperature=1.0, seed=5, ignore_eos=True) for i in range(2)])
    assert seeded[0].ids == seeded[1].ids
    free = drive(llama.build(), [ask(i, [4], temperature=1.0, ignore_eos=True) for i in range(2)])
    assert free[0].ids != free[1].ids


def test_more_requests_than_slots_wait_their_turn(llama: Any) -> None:
    engine = llama.build(max_streams=2)
    for i in range(5):
        engine.submit(ask(i, [i + 1], max_tokens=2, ignore_eos=True))
    seen = []
    while engine.has_work:
        seen.append([event.request for event in engine.step()])
    assert seen == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]


def test_cancelling_frees_the_slot_at_the_next_step(llama: Any) -> None:
    engine = llama.build(max_streams=1)
    engine.submit(ask(1, [1], ignore_eos=True))
    engine.submit(ask(2, [2], ignore_eos=True))
    engine.submit(ask(3, [3], ignore_eos=True))
    engine.step()
    engine.cancel(1)
    engine.cancel(2)
    engine.cancel(77)
    events = engine.step()
    assert [(e.request, e.finish_reason, e.first_position, e.output_ids) for e in events[:2]] == [
        (1, "cancelled", 1, ()),
        (2, "cancelled", 0, ()),
    ]
    assert [(e.request, len(e.output_ids)) for e in events[2:]] == [(3, 1)]
    engine.cancel(3)
    assert [e.finish_reason for e in engine.step()] == ["cancelled"]
    assert not engine.has_work


def test_logits_that_are_not_finite_fail_that_request_only(checkpoint: Any, drive: Callable[..., Any]) -> None:
    model = checkpoint("llama-untied")
    embedding = model.tensors["model.embed_tokens.weight"].clone()
    embedding[255] = torch.nan
    engine = model.build({"model.embed_tokens.weight": embedding})
    answers = drive(engine, [ask(1, PROMPTS[0][:2]), ask(2, [1, 255])])
    assert isinstance(answers[1].last, TokenEvent)
    assert answers[1].ids[:3] == model.generate(PROMPTS[0][:2], 24)[:3]
    assert isinstance(answers[2].last, FailureEvent)
    assert answers[2].last.code == "INTERNAL"
    assert "position 0" in answers[2].last.message
    later = drive(engine, [ask(i, PROMPTS[0][:2]) for i in range(3, 7)])  # one of them in the slot that held the NaN
    assert all(answer.ids == answers[1].ids for answer in later.values())


def test_a_model_that_can_only_stop_fails_where_it_may_not_yet(checkpoint: Any, drive: Callable[..., Any]) -> None:
    only_stops = checkpoint("llama-untied").build()
    logits = torch.full((260,), -torch.inf).index_fill(0, torch.tensor([7, 8]), 0.0)
    only_stops._model._model.lm_head.forward = lambda hidden: logits.expand(*hidden.shape[:-1], -1)
    stops = {"stop_token_ids": [7, 8], "seed": 1}
    answers = drive(
        only_stops,
        [
            ask(1, [1], min_tokens=1, **stops),
            ask(2, [1], min_tokens=1, temperature=1e-310, top_p=0.5, **stops),
            ask(3, [1], temperature=1.0, **stops),
        ],
    )
    assert [answers[i].last.code for i in (1, 2)] == ["INTERNAL", "INTERNAL"]
    assert answers[3].last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerationRequest(request=1, input_ids=[]), "input_ids is empty"),
        (GenerationRequest(request=1, text=""), "text_input is empty"),
        (GenerationRequest(request=1), "exactly one of text_input, input_ids and messages"),
        (GenerationRequest(request=1, text="a", input_ids=[1]), "exactly one of"),
        (GenerationRequest(request=1, input_ids=[3, 260]), "input_ids holds 260; token ids here are 0 to 259"),
        (GenerationRequest(request=1, input_ids=[-1]), "holds -1"),
        (GenerationRequest(request=1, input_ids=[1], resume_token_ids=[999]), "resume_token_ids holds 999"),
        (ask(1, [1], stop_token_ids=[260]), "'stop_token_ids' holds 260"),
        (ask(1, [1] * 96), r"96 tokens.*may have 96; shorten the prompt to at most 95"),
        (ask(1, [1] * 96 + [999]), "97 tokens"),
        (ask(1, [1], tempature=1), "'tempature' is unknown"),
        (ask(1, [1], min_tokens=1, stop_token_ids=list(range(260))), "every token is a stop token"),
        (ask(1, [1, 10**5000]), "input_ids holds a whole number of more than 64 bits"),
        (GenerationRequest(request=1, text="a\ud800"), "text_input is not Unicode text at character 1"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(llama: Any, request_: GenerationRequest, message: str) -> None:
    engine = llama.build()
    with pytest.raises(InvalidRequest, match=message):
        engine.submit(request_)
    assert not engine.has_work


def test_a_request_number_serves_one_request_at_a_time(llama: Any, drive: Callable[..., Any]) -> None:
    engine = llama.build()
    engine.submit(ask(1, [1]))
    with pytest.raises(InvalidRequest, match="request 1 is running already"):
        engine.submit(ask(1, [2]))
    drive(engine)
    engine.submit(ask(1, [2]))


def test_more_positions_than_the_model_has_are_refused(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match="max_sequence_tokens is 129, and the model has positions for 128"):
        llama.build(max_sequence_tokens=129)


def test_closing_lets_go_of_the_tensors(llama: Any) -> None:
    engine = llama.build()
    engine.submit(ask(1, [1]))
    engine.close()
    assert not engine.has_work
    assert engine._model is None
