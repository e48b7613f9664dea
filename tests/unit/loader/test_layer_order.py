import random

import pytest

from serverless_triton.loader.layer_order import layer_key

LLAMA = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.experts.1.w1.weight",
    "model.layers.2.mlp.experts.9.w1.weight",
    "model.layers.2.mlp.experts.10.w1.weight",
    "model.layers.10.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]
GPT2 = ["wpe.weight", "wte.weight", "h.0.ln_1.weight", "h.11.ln_1.weight", "ln_f.weight", "score.weight"]
NEOX = ["gpt_neox.embed_in.weight", "gpt_neox.layers.3.mlp.bias", "gpt_neox.final_layer_norm.bias", "embed_out.weight"]
TWO_STACKS = ["decoder.block.0.w", "decoder.block.1.w", "encoder.block.0.w", "encoder.block.1.w"]


@pytest.mark.parametrize("names", [LLAMA, GPT2, NEOX, TWO_STACKS])
def test_names_sort_as_a_forward_pass_needs_them(names: list[str]) -> None:
    shuffled = random.Random(7).sample(names, len(names))

    assert sorted(shuffled, key=layer_key) == names


def test_names_that_differ_only_in_zeros_still_have_one_order() -> None:
    assert sorted(["a.1", "a.01"], key=layer_key) == sorted(["a.01", "a.1"], key=layer_key)


def test_absurdly_long_numbers_are_just_large() -> None:
    assert layer_key("a.9") < layer_key("a.1" + "0" * 10_000)
