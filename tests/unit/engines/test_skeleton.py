"""A model built without weights and given tensors: the right ones, uncopied, or a refusal that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from serverless_triton.backend.engines.protocol import EngineSettings, ModelNotSupported
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder
from serverless_triton.backend.engines.torch.skeleton import Skeleton


def attach(model: Any, tensors: dict[str, torch.Tensor] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    return Skeleton(model.path).attach(model.tensors if tensors is None else tensors, dtype)


@pytest.mark.parametrize("name", ["llama", "llama-untied", "llama-scaled-rope", "qwen3", "gpt2", "opt"])
def test_every_tensor_is_the_one_given_and_not_a_copy(checkpoint: Callable[[str], Any], name: str) -> None:
    model = checkpoint(name)
    attached = attach(model)
    places = dict(attached.named_parameters(remove_duplicate=False))
    assert {places[key].data_ptr() for key in model.tensors} == {t.data_ptr() for t in model.tensors.values()}
    assert not any(tensor.is_meta for tensor in (*attached.parameters(), *attached.buffers()))
    assert not any(parameter.requires_grad for parameter in attached.parameters())


@pytest.mark.parametrize("name", ["llama", "llama-scaled-rope", "qwen3", "gpt2", "opt"])
def test_computed_buffers_are_those_of_transformers(checkpoint: Callable[[str], Any], name: str) -> None:
    model = checkpoint(name)
    buffers = dict(attach(model).named_buffers())
    expected = dict(model.reference.named_buffers())
    assert buffers.keys() == expected.keys()
    for key, buffer in buffers.items():
        assert torch.equal(buffer, expected[key]), key


def test_tied_weights_are_one(llama: Any) -> None:
    attached = attach(llama)
    assert attached.lm_head.weight is attached.model.embed_tokens.weight


def test_either_end_of_a_tie_will_do(llama: Any) -> None:
    tensors = dict(llama.tensors)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    attached = attach(llama, tensors)
    assert attached.lm_head.weight is attached.model.embed_tokens.weight


def test_both_ends_of_a_tie_that_differ_stay_different(llama: Any) -> None:
    head = torch.zeros(260, 32)
    attached = attach(llama, {**llama.tensors, "lm_head.weight": head})
    assert attached.lm_head.weight.data_ptr() == head.data_ptr()
    assert attached.model.embed_tokens.weight.data_ptr() == llama.tensors["model.embed_tokens.weight"].data_ptr()


def test_only_tensors_of_another_dtype_are_copied(llama: Any) -> None:
    tensors = {**llama.tensors, "model.norm.weight": llama.tensors["model.norm.weight"].double()}
    attached = attach(llama, tensors)
    assert attached.model.norm.weight.dtype == torch.float32
    assert attached.model.layers[0].self_attn.q_proj.weight.data_ptr() in {t.data_ptr() for t in tensors.values()}
    assert attach(llama, dtype=torch.bfloat16).model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)]
)
def test_auto_is_the_dtype_of_the_config(llama: Any, name: str, expected: torch.dtype) -> None:
    assert Skeleton(llama.path).dtype(name, {}) == expected


def test_auto_is_the_tensors_dtype_where_the_config_has_none(llama: Any, tmp_path: Path) -> None:
    config = json.loads((llama.path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Skeleton(tmp_path).dtype("auto", {"a": torch.zeros(1, dtype=torch.float16)}) == torch.float16


def test_names_without_the_causal_lm_prefix_find_their_places(checkpoint: Callable[[str], Any]) -> None:
    model = checkpoint("gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in model.tensors.items()}
    attached = attach(model, bare)
    assert attached.transformer.wte.weight.data_ptr() == bare["wte.weight"].data_ptr()


def test_leftovers_of_older_checkpoints_are_passed_over(checkpoint: Callable[[str], Any]) -> None:
    llama, gpt2 = checkpoint("llama"), checkpoint("gpt2")
    attach(llama, {**llama.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    attach(gpt2, {**gpt2.tensors, "transformer.h.0.attn.bias": torch.zeros(1, 1, 4, 4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, r"lacks model\.norm\.weight, which LlamaForCausalLM"),
        ({"model.extra": torch.zeros(1)}, r"has model\.extra, which LlamaForCausalLM.* has no place for"),
        ({"model.norm.weight": torch.zeros(31)}, r"model\.norm\.weight has shape \[31\] where .* needs \[32\]"),
        ({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}, r"model\.norm\.weight is torch\.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(llama: Any, changes: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**llama.tensors, **changes}.items() if tensor is not None}
    with pytest.raises(ModelNotSupported, match=message):
        attach(llama, tensors)


def test_a_long_list_of_names_is_shortened(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match=r"lacks .* and \d\d more, which"):
        attach(llama, {"model.norm.weight": llama.tensors["model.norm.weight"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "there is no file .*config.json"),
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json holds a list of 0; it must be a JSON object"),
        ("[" * 100_000, r"config\.json is not JSON"),
        ({"model_type": "no-such-model"}, "cannot be used"),
        ({"model_type": "vit"}, "cannot be served"),
        ({"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 8}, "keeps state"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized"),
        ({"model_type": "gemma3"}, "has no vocab_size"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ModelNotSupported, match=message):
        Skeleton(tmp_path)


TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tiny(path: Path, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps({**TINY, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "abc"}, "hidden_size is 'abc'; use a whole number from 1"),
        ({"hidden_size": 10**30}, "hidden_size is a whole number of more than 64 bits"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; use a whole number from 1"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"intermediate_size": -5}, "intermediate_size is -5; use a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; use a whole number from 1 to 1000"),
        ({"hidden_size": 17}, "cannot be used: .*hidden size"),
        ({"rope_theta": "x"}, "cannot be .*TypeError"),
        ({"rope_scaling": {"rope_type": "nope"}}, "cannot be .*KeyError"),
        ({"hidden_act": "nope"}, "cannot be .*KeyError"),
        ({"dtype": "nope"}, "cannot be .*AttributeError"),
        ({"pad_token_id": 99_999}, "cannot be .*AssertionError"),
        ({"eos_token_id": "x"}, "cannot be used|eos_token_id is 'x'"),
    ],
)
def test_configs_that_make_no_sense_are_refused_with_the_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelNotSupported, match=rf"(?s){tmp_path}/config\.json.*{message}"):
        Skeleton(tiny(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1, null]}'])
def test_a_generation_config_that_makes_no_sense_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    (tiny(tmp_path) / "generation_config.json").write_text(text)
    with pytest.raises(ModelNotSupported, match=rf"{tmp_path}/generation_config\.json"):
        Skeleton(tmp_path)


def test_ends_of_sequence_are_those_that_the_model_can_say(tmp_path: Path) -> None:
    (tiny(tmp_path) / "generation_config.json").write_text('{"eos_token_id": [-1, 3, 63, 64]}')
    assert Skeleton(tmp_path).eos_ids == {3, 63}


HUGE = {"intermediate_size": 2**31 - 1, "hidden_size": 2**30}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Many heads, because large ones take a minute to turn: their angles are computed before anything is refused.
        ({**HUGE, "num_attention_heads": 2**26, "num_key_value_heads": 2**26}, "no memory for the KV cache"),
        ({**HUGE, "head_dim": 16}, "tensors that no memory here can hold"),
        ({"num_key_value_heads": 3}, "does not run in the torch engine: Number of heads"),
    ],
)
def test_learning_refuses_what_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(ModelNotSupported, match=message):
        TorchEngineBuilder().learn(str(tiny(tmp_path, **changes)), "float32")


@pytest.mark.parametrize("threads", [1, 2])  # with one, learning rehearses all layers and building the first only
@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mistral", {"sliding_window": 16}, "max_sequence_tokens is 64, and the model's sliding window has 16 tokens"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "the model's sliding window has 8",
        ),
        ("gemma2", {"head_dim": 8}, "Gemma2Attention needs .*softcap"),
        ("bloom", {"n_layer": 2, "n_head": 2}, "ran 0 of its 2 layers|does not"),
    ],
)
def test_attention_that_ours_would_get_wrong_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    changes: dict[str, Any],
    message: str,
    threads: int,
) -> None:
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model(model_type, **{**small, **heads, **changes})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    skeleton = Skeleton(tmp_path)
    tensors = {place.name: torch.zeros(place.meta.shape) for place in skeleton._places}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    builder = TorchEngineBuilder()
    with pytest.raises(ModelNotSupported, match=message):
        _learn_and_build(builder, str(tmp_path), tensors)


def _learn_and_build(builder: TorchEngineBuilder, checkpoint: str, tensors: dict[str, torch.Tensor]) -> None:
    builder.learn(checkpoint, "float32")
    settings = EngineSettings(dtype="float32", max_sequence_tokens=64, max_streams=1)
    builder.build(checkpoint, tensors, settings=settings)
