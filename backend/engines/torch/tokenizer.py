"""Loads a checkpoint's tokenizer, by the quick way where that gives the same ids as Hugging Face's AutoTokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serverless_triton.backend.engines.protocol import ModelNotSupported

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
_SHRINKING = 8  # how much shorter a normaliser may make a text, beyond which it is taken for too long


class FileTokenizer:
    """Implements detokenizer.Tokenizer. One text a call: batches start threads, and the zygote forks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()  # a file may carry the settings that its model was trained with
        tokenizer.no_padding()
        spelled_bytes = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self.longest_token_bytes = spelled_bytes * (1 if tokenizer.normalizer is None else _SHRINKING)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def load_tokenizer(checkpoint: Path) -> FileTokenizer | None:
    """None where the checkpoint has no tokenizer: it then serves token ids only. Raises ModelNotSupported."""
    if not any((checkpoint / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return None
    try:
        return FileTokenizer(_from_file(checkpoint) or _from_transformers(checkpoint))
    except Exception as error:  # what the tokenizers library raises
        raise ModelNotSupported(f"the tokenizer in {checkpoint} cannot be read: {error}") from error


def _from_file(checkpoint: Path) -> Tokenizer | None:
    """None where tokenizer_config.json overrules tokenizer.json, which only transformers knows how to do."""
    if not (checkpoint / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    config = _tokenizer_config(checkpoint)
    if "add_bos_token" in config or "add_eos_token" in config:
        wanted = bool(config.get("add_bos_token")) + bool(config.get("add_eos_token"))
        if tokenizer.num_special_tokens_to_add(False) != wanted:
            return None
    return tokenizer


def _tokenizer_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return config


def _from_transformers(checkpoint: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # seconds to import, and most checkpoints do without

    loaded: Any = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer
