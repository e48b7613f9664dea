"""What a model's parts are, by the names of its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.model_parts import UnknownParts, converted_bytes, part_bytes, parts_for, read_parts

LLAMA = {
    "model.embed_tokens.weight": 100,
    "model.layers.0.self_attn.q_proj.weight": 10,
    "model.layers.0.mlp.down_proj.weight": 5,
    "model.layers.1.self_attn.q_proj.weight": 11,
    "model.layers.1.mlp.experts.7.down_proj.weight": 6,
    "model.norm.weight": 2,
    "lm_head.weight": 100,
}
GPT2 = {
    "wte.weight": 50,
    "wpe.weight": 20,
    "h.0.attn.c_attn.weight": 10,
    "h.1.attn.c_attn.weight": 10,
    "h.2.attn.c_attn.weight": 12,
    "ln_f.weight": 1,
    "ln_f.bias": 1,
}
OPT = {
    "model.decoder.embed_tokens.weight": 50,
    "model.decoder.embed_positions.weight": 20,
    "model.decoder.project_in.weight": 3,
    "model.decoder.final_layer_norm.weight": 1,
    "model.decoder.project_out.weight": 3,
    "model.decoder.layers.0.fc1.weight": 9,
}


def test_embedding_layers_norm_and_head_are_counted_apart() -> None:
    assert part_bytes(LLAMA.items(), 0) == [100, 15, 17, 2, 100]


def test_a_tied_head_takes_nothing() -> None:
    assert part_bytes(GPT2.items(), 0) == [70, 10, 10, 12, 2, 0]


def test_what_goes_in_is_beside_the_embedding_and_what_comes_out_beside_the_norm() -> None:
    assert part_bytes(OPT.items(), 0) == [73, 9, 4, 0]


def test_each_layer_has_its_share_of_the_kv_memory_rounded_up() -> None:
    assert part_bytes(LLAMA.items(), 7) == [100, 19, 21, 2, 100]


def test_a_model_without_numbered_layers_has_no_known_parts() -> None:
    with pytest.raises(UnknownParts, match="no layers' numbers"):
        part_bytes({"weight": 1}.items(), 10)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    shapes = {"model.embed_tokens.weight": 8, "model.layers.0.w": 4, "model.layers.1.w": 4, "model.norm.weight": 2}
    tensors = {name: torch.zeros(count, dtype=torch.bfloat16) for name, count in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return ModelSpec(checkpoint=str(tmp_path), checkpoint_bytes=40, kv_cache_bytes=20)


def test_parts_are_read_from_a_checkpoints_headers(spec: ModelSpec) -> None:
    assert read_parts(spec) == [16, 18, 18, 4, 0]


def test_weights_count_in_the_dtype_that_they_run_in(spec: ModelSpec) -> None:
    assert read_parts(replace(spec, dtype="float32")) == [32, 26, 26, 8, 0]


def test_on_a_device_that_holds_no_weights_a_replica_is_its_kv_memory(spec: ModelSpec) -> None:
    assert parts_for(spec, weights_on_device=False) == [20]


def test_weights_that_run_in_another_dtype_count_on_a_device_that_holds_none(spec: ModelSpec) -> None:
    assert converted_bytes(spec.checkpoint, "float32") == 18 * 4
    assert converted_bytes(spec.checkpoint, "float16") == 18 * 2
    assert converted_bytes(spec.checkpoint, "bfloat16") == 0
    assert parts_for(replace(spec, converted_bytes=72), weights_on_device=False) == [92]


def test_what_is_no_float_is_not_converted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.int32), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    assert converted_bytes(str(tmp_path), "bfloat16") == 10


def test_a_checkpoint_that_lies_elsewhere_is_one_part(spec: ModelSpec) -> None:
    remote = replace(spec, checkpoint="hf://a/b")
    assert parts_for(remote, weights_on_device=True) == [60]
    assert parts_for(replace(remote, converted_bytes=80), weights_on_device=True) == [100]
