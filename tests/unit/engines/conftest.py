"""Small checkpoints with random weights, and what drives an engine through them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM

from serverless_triton.backend.engines.protocol import (
    Engine,
    EngineEvent,
    EngineSettings,
    GenerationRequest,
    PositionEvent,
    TokenEvent,
    is_terminal,
)
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder
from serverless_triton.backend.engines.torch.engine import TorchEngine
from serverless_triton.backend.engines.torch.kv_memory import KVShape

_SMALL = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # logits far enough apart that float32 rounding never swaps two of them
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-untied": {**_SMALL, "model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": False},
    "llama-scaled-rope": {
        **_SMALL,
        "model_type": "llama",
        "num_key_value_heads": 2,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen2": {**_SMALL, "num_key_value_heads": 2},
    "qwen3": {**_SMALL, "num_key_value_heads": 2, "head_dim": 16},
    "mistral": {**_SMALL, "num_key_value_heads": 2, "sliding_window": None},
    "gpt_neox": {**_SMALL, "num_hidden_layers": 2},
    "phi3": {**_SMALL, "num_key_value_heads": 2, "original_max_position_embeddings": 128},
    "qwen3_moe": {
        **_SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "gpt2": {
        "vocab_size": 260,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.3,
        "bos_token_id": 257,
        "eos_token_id": 257,
    },
    "opt": {
        "vocab_size": 260,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.3,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A directory as `add` would find it, its tensors, and the same model in transformers' own hands."""

    path: Path
    tensors: dict[str, torch.Tensor]
    reference: Any

    def build(self, tensors: Mapping[str, torch.Tensor] | None = None, **settings: Any) -> TorchEngine:
        limits: dict[str, Any] = {"dtype": "float32", "max_streams": 4, "max_sequence_tokens": 96, **settings}
        return TorchEngineBuilder().build(
            str(self.path), {**self.tensors, **(tensors or {})}, settings=EngineSettings(**limits)
        )

    def kv_bytes(self, tokens: int) -> int:
        """What the keys and values of so many tokens take in float32."""
        return KVShape.of_config(self.reference.config).token_bytes(torch.float32) * tokens

    def generate(self, prompt_ids: list[int], max_tokens: int) -> list[int]:
        """What transformers generates greedily."""
        given = torch.tensor([prompt_ids])
        answer = self.reference.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=258,
        )
        ids: list[int] = answer[0, len(prompt_ids) :].tolist()
        return ids


def byte_tokenizer(bos: bool = False) -> Tokenizer:
    """A token is a byte of UTF-8, in GPT-2's spelling; 256 to 259 are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<x>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


@pytest.fixture
def make_tokenizer() -> Callable[..., Tokenizer]:
    return byte_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Checkpoints by the names in CONFIGS, each made once."""
    made: dict[str, Checkpoint] = {}

    def make(name: str) -> Checkpoint:
        if name not in made:
            made[name] = _make_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture
def llama(checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint("llama")


def _make_checkpoint(name: str, path: Path) -> Checkpoint:
    config = AutoConfig.for_model(**{"model_type": name, **CONFIGS[name]})
    torch.manual_seed(len(name))
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    reference.generation_config.eos_token_id = 257
    (path / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float32"}, default=str))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    tied = set(reference._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    state = {key: value.detach() for key, value in reference.state_dict().items() if key not in tied}
    return Checkpoint(path=path, tensors=state, reference=reference)


@dataclass(slots=True)
class Answer:
    """What one request's events add up to, checked while they come."""

    ids: list[int]
    text: str
    first: EngineEvent | None = None
    last: EngineEvent | None = None


@pytest.fixture
def drive() -> Callable[..., dict[int, Answer]]:
    """Steps an engine until it has no work. `later` are requests by the step before which they are submitted."""

    def run(
        engine: Engine,
        requests: Iterable[GenerationRequest] = (),
        later: Mapping[int, GenerationRequest] | None = None,
    ) -> dict[int, Answer]:
        for request in requests:
            engine.submit(request)
        waiting = dict(later or {})
        answers: dict[int, Answer] = {}
        step = 0
        while engine.has_work or waiting:
            if step in waiting:
                engine.submit(waiting.pop(step))
            for event in engine.step():
                _add(answers, event)
            step += 1
            assert step < 1000, "the engine does not come to an end"
        assert all(answer.last is not None and is_terminal(answer.last) for answer in answers.values())
        return answers

    return run


def _add(answers: dict[int, Answer], event: EngineEvent) -> None:
    answer = answers.setdefault(event.request, Answer([], ""))
    assert answer.last is None or not is_terminal(answer.last), "an event after the last"
    if isinstance(event, PositionEvent):  # a slow machine's sign of life
        return
    if isinstance(event, TokenEvent):
        expected = len(answer.ids) + (answer.first.first_position if isinstance(answer.first, TokenEvent) else 0)
        assert answer.first is None or event.first_position == expected
        assert (event.prompt_ids is not None) == (answer.first is None)
        answer.ids += event.output_ids
        answer.text += event.text
    answer.first = answer.first or event
    answer.last = event
