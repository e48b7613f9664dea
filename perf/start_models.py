"""The large model whose starts are measured: a Llama of 2.2 GB with random weights, and somebody else's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from perf.loader.forms import Shape, forms_in_cache

WEIGHTS_SEED = 1
HEAD_SIZE = 64
# As TinyLlama, with SmolLM2's vocabulary, so with two layers less.
LARGE = Shape(
    name="llama-1.1b-computes",
    layers=20,
    hidden=2048,
    intermediate=5632,
    key_value=256,
    vocabulary=49152,
    computes=True,
)


def config(shape: Shape) -> dict[str, object]:
    """What config.json says of the shape, in transformers' words."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // HEAD_SIZE,
        "num_key_value_heads": shape.key_value // HEAD_SIZE,
        "head_dim": HEAD_SIZE,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_model(shape: Shape, tokenizer_of: Path, target: Path) -> Path:
    """A Hugging Face directory with a copy of the shape's weights, which nobody else has mapped; returns it."""
    weights = forms_in_cache(shape, WEIGHTS_SEED).path("single")
    shutil.copytree(weights, target)
    for file in tokenizer_of.glob("tokenizer*"):
        shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config(shape), indent=1))
    return target
