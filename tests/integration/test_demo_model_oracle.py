"""The demo model's greedy tokens, in float32, are those of transformers' own generate()."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest, TokenEvent
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "Übersetze ins Englische: Guten Morgen – wie geht’s? 👋",
)
MAX_TOKENS = 40


def test_the_demo_model_answers_as_transformers_does(demo_model: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(str(demo_model), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(demo_model))
    engine = TorchEngineBuilder().build(
        str(demo_model),
        reference.state_dict(),
        settings=EngineSettings(dtype="float32", max_sequence_tokens=256, max_streams=4),
    )
    ids: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}
    texts = dict.fromkeys(ids, "")
    for i, prompt in enumerate(PROMPTS):  # each arrives while those before it decode
        engine.submit(GenerationRequest(request=i, text=prompt, sampling_parameters={"max_tokens": MAX_TOKENS}))
        _step(engine, ids, texts)
    while engine.has_work:
        _step(engine, ids, texts)
    for i, prompt in enumerate(PROMPTS):
        given = tokenizer(prompt, return_tensors="pt")
        answer = reference.generate(**given, max_new_tokens=MAX_TOKENS, do_sample=False)[0]
        expected = answer[given["input_ids"].shape[1] :].tolist()
        assert ids[i] == expected
        assert texts[i] == tokenizer.decode(expected, skip_special_tokens=True)


def _step(engine, ids: dict[int, list[int]], texts: dict[int, str]) -> None:
    for event in engine.step():
        assert isinstance(event, TokenEvent)
        ids[event.request] += event.output_ids
        texts[event.request] += event.text
