"""The quick way to a tokenizer gives the ids that AutoTokenizer gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.engines.torch.tokenizer import FileTokenizer, load_tokenizer

TEXTS = ("hello", " two  spaces", "naïve 汉字 👩‍👩‍👧", "<s>inner</s>", "\n\ttabs")


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True, "bos_token": "<s>"},
        {"add_bos_token": False, "bos_token": "<s>"},
        {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
    ],
)
def test_ids_are_those_of_auto_tokenizer(
    tmp_path: Path, make_tokenizer: Any, bos: bool, config: dict[str, Any]
) -> None:
    make_tokenizer(bos=bos).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    expected = AutoTokenizer.from_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    for text in TEXTS:
        assert tokenizer.encode(text) == expected(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == expected.decode(
            expected(text)["input_ids"], skip_special_tokens=True
        )


def test_truncation_and_padding_in_the_file_do_not_apply(tmp_path: Path, make_tokenizer: Any) -> None:
    made = make_tokenizer()
    made.enable_truncation(4)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert [len(tokenizer.encode("abcdefgh" * n)) for n in (1, 2)] == [8, 16]
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize(("normalizer", "bytes_"), [(None, 8), (normalizers.Strip(), 64)])
def test_the_longest_token_bounds_a_text_which_a_normaliser_may_shorten(
    make_tokenizer: Any, normalizer: Any, bytes_: int
) -> None:
    made = make_tokenizer()
    made.add_tokens(["ab汉字"])
    if normalizer is not None:
        made.normalizer = normalizer
    assert FileTokenizer(made).longest_token_bytes == bytes_


def test_a_checkpoint_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_a_broken_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelNotSupported, match=f"the tokenizer in {tmp_path} cannot be read"):
        load_tokenizer(tmp_path)
