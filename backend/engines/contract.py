"""The exactness contract: a digest of all that decides a token's bits (decision 11).

Two engines with one digest compute the same tokens from the same state, whatever batch surrounds it and however its
prefix was fed, where their mode is exact. Pure: it looks nothing up; the facts are the engine builder's to gather.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """What the digest covers.

    `checkpoint`: file name → digests of its chunks in order (loader/chunk_hashes.py), where the store has compared all
    of them with what it read; else "tensors" → a digest of names, dtypes, shapes and samples, which tells models apart
    and not every change of some weights. `config`, `tokenizer`: digests of the files. `lora`: adapter → digest.
    `versions`: library → version, among them the engine's own, torch's and NumPy's. `instruction_set`: what chooses
    kernels, a processor's name and instructions or a GPU's name, of each device that the model spans. `device`: its
    kind; of several each one's, and how many of the model's parts it has. `tile_rows` and `kv_alignment_tokens` are 0
    where an engine keeps none, as in fast mode.
    """

    checkpoint: Mapping[str, Sequence[str]]
    config: str
    tokenizer: str
    engine: str
    versions: Mapping[str, str]
    instruction_set: str
    device: str
    dtype: str
    tile_rows: int
    kv_alignment_tokens: int
    threads: int
    lora: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """64 hexadecimal digits; the order of files, libraries and adapters does not matter."""
        canonical = json.dumps(
            {"contract": VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(canonical.encode()).hexdigest()
