"""One trial of exactness: streams that run undisturbed in one process, and again from a random position in another one,
in other batches, in other chunks, in other slots. What they say must be the same.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 688, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 688, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 688, "num_key_value_heads": 2, "head_dim": 64},
    "gpt2": {"n_positions": 2048},
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 256},
}
VOCABULARY = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`streams` of `tokens` each, of prompts of 1 to `longest_prompt` tokens. Every second one is sampled."""

    checkpoint: Path
    dtype: str = "bfloat16"
    threads: int = 1
    streams: int
    tokens: int
    longest_prompt: int
    vocabulary: int = VOCABULARY
    seed: int = 0
    mode: str = "exact"

    def diverged(self) -> list[int]:
        """The streams that went on differently."""
        rng = random.Random(self.seed)
        whole = [self._request(rng, number) for number in range(self.streams)]
        expected = self._run(whole, max_streams=min(16, self.streams), step_tokens=512)
        assert [len(ids) for ids in expected] == [self.tokens] * self.streams
        again = [self._resumed(rng, request, ids) for request, ids in zip(whole, expected, strict=True)]
        order = rng.sample(range(self.streams), self.streams)
        answers = self._run(
            [again[i] for i in order],
            max_streams=rng.randint(3, 13),
            step_tokens=rng.randint(20, 200),
        )
        return [i for i, answer in zip(order, answers, strict=True) if again[i]["resume"] + answer != expected[i]]

    def _request(self, rng: random.Random, number: int) -> dict[str, Any]:
        sampling: dict[str, Any] = {"max_tokens": self.tokens, "ignore_eos": True}
        if number % 2:
            sampling |= {"temperature": 1.0, "seed": number, "top_p": 0.95 if number % 4 == 1 else 1.0}
        prompt = [rng.randrange(self.vocabulary) for _ in range(rng.randint(1, self.longest_prompt))]
        return {"at": 0, "input_ids": prompt, "resume": [], "sampling": sampling}

    def _resumed(self, rng: random.Random, request: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        """The request as it comes after an interruption; one in three is caught up before, as one that moves is."""
        resume = ids[: rng.randrange(len(ids))]
        at = rng.randrange(2 * self.streams)
        rounds: list[tuple[int, int]] = []
        if rng.randrange(3) == 0:
            positions = sorted(rng.randint(0, len(resume)) for _ in range(2))
            rounds = [(at, positions[0]), (at + 2, positions[1])]
            at += 4
        return {**request, "resume": resume, "at": at, "rounds": rounds}

    def _run(self, requests: list[dict[str, Any]], **settings: Any) -> list[list[int]]:
        longest = self.longest_prompt + self.tokens
        given = {"dtype": self.dtype, "mode": self.mode, "threads": self.threads, "max_sequence_tokens": longest}
        work = {"checkpoint": str(self.checkpoint), "settings": {**given, **settings}, "requests": requests}
        done = subprocess.run(
            [sys.executable, str(HERE / "engine_process.py")],
            input=json.dumps(work),
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[list[int]] = json.loads(done.stdout)
        return answers


def random_checkpoint(architecture: str, folder: Path) -> Path:
    """Small, but with the shapes of its kind: heads of 64, rows that fill no vector evenly, logits close together."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    positions = {} if architecture == "gpt2" else {"max_position_embeddings": 2048}
    config = AutoConfig.for_model(
        architecture, **{**shape, **positions, **_SIZES[architecture], "initializer_range": 0.1, "init_std": 0.1}
    )
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "bfloat16"}, default=str))
    return folder
