"""Makes TorchEngines, and remembers what needs no weights: skeletons, tokenizers and chat templates, by their files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from serverless_triton.backend.engines.chat_template import CHAT_TEMPLATE_FILES, ChatTemplate, load_chat_template
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import NO_DIGESTS, EngineSettings, Exactness, ModelNotSupported
from serverless_triton.backend.engines.schedule import Schedule
from serverless_triton.backend.engines.torch.causal_lm import CausalLM
from serverless_triton.backend.engines.torch.engine import TorchEngine
from serverless_triton.backend.engines.torch.exact import (
    MODES,
    TILE,
    Ground,
    decide,
    facts_of,
    fingerprint,
    platform_of_all,
    proven,
    set_products,
)
from serverless_triton.backend.engines.torch.kv_memory import KVMemory, KVPlan, KVShape, SpannedKVMemory
from serverless_triton.backend.engines.torch.placement import Placement
from serverless_triton.backend.engines.torch.skeleton import CONFIG_FILES, DTYPES, Skeleton
from serverless_triton.backend.engines.torch.tokenizer import TOKENIZER_FILES, FileTokenizer, load_tokenizer

Value = TypeVar("Value")


class Learned(Generic[Value]):
    """The values last used, at most `limit`, by the digest of the files that each is made of."""

    def __init__(self, files: Sequence[str], make: Callable[[Path], Value], *, limit: int = 64) -> None:
        self._files = files
        self._make = make
        self._limit = limit
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._digests: dict[Path, tuple[object, str]] = {}

    def get(self, checkpoint: Path) -> Value:
        """The value, made now where it is new."""
        digest = self.digest(checkpoint)
        if digest not in self._values:
            self._values[digest] = self._make(checkpoint)
        self._values.move_to_end(digest)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
        return self._values[digest]

    def take(self, checkpoint: Path) -> Value:
        """The value, for the caller alone: the next one who asks gets a new one."""
        value = self.get(checkpoint)
        del self._values[self.digest(checkpoint)]
        return value

    def digest(self, checkpoint: Path) -> str:
        """Of the files' names and contents. Reads files again only when they have changed.

        A tokenizer has megabytes, and a cold start waits for this.
        """
        paths = [path for path in (checkpoint / name for name in self._files) if path.is_file()]
        states = [(path, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in ((path, path.stat()) for path in paths)]
        remembered = self._digests.get(checkpoint)
        if remembered is None or remembered[0] != states:
            digest = hashlib.sha256()
            for path in paths:
                digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
            remembered = self._digests[checkpoint] = (states, digest.hexdigest())
        return remembered[1]


class TorchEngineBuilder:
    """Implements protocol.EngineBuilder.

    A skeleton becomes one engine and is not kept beside it. A forked worker got its copy with its process, which no
    copying here could beat; a builder that makes a second engine of one checkpoint builds a second skeleton.
    """

    def __init__(self) -> None:
        self._skeletons: Learned[Skeleton] = Learned(CONFIG_FILES, Skeleton)
        self._tokenizers: Learned[FileTokenizer | None] = Learned(TOKENIZER_FILES, load_tokenizer)
        self._chat_templates: Learned[ChatTemplate | None] = Learned(CHAT_TEMPLATE_FILES, _chat_template)

    def learn(self, checkpoint: str, dtype: str) -> None:
        _check_dtype(dtype)
        skeleton = self._skeletons.get(Path(checkpoint))
        self._tokenizers.get(Path(checkpoint))
        self._chat_templates.get(Path(checkpoint))
        if not skeleton.rehearsed and torch.get_num_threads() == 1:  # with more, a child forked afterwards would hang
            _rehearse(skeleton, skeleton.dtype(dtype, {}))

    def build(
        self,
        checkpoint: str,
        tensors: Mapping[str, torch.Tensor],
        *,
        settings: EngineSettings,
        chunk_digests: Mapping[str, Sequence[str]] = NO_DIGESTS,
    ) -> TorchEngine:
        _check_dtype(settings.dtype)
        _check_mode(settings.mode)
        _check_no_options(settings.options)
        tokenizer = self._tokenizers.get(Path(checkpoint))
        skeleton = self._skeletons.take(Path(checkpoint))
        _check_length(skeleton.config, settings.max_sequence_tokens)
        dtype = skeleton.dtype(settings.dtype, tensors)
        placement = Placement(settings.shares, skeleton.config.num_hidden_layers) if settings.shares else None
        model = skeleton.attach(tensors, dtype, placement.device_of if placement else None)
        device = next(model.parameters()).device
        runs = placement.runs() if placement else [(device, 1)]
        ground = Ground(
            platform=platform_of_all(runs),
            architecture=skeleton.config.model_type,
            dtype=dtype,
            threads=torch.get_num_threads(),
        )
        exact, reason = decide(settings.mode, ground)
        set_products(model, exact=exact)
        facts = facts_of(
            chunk_digests or {"tensors": [fingerprint(tensors)]},
            config=self._skeletons.digest(Path(checkpoint)),
            tokenizer=self._tokenizers.digest(Path(checkpoint)),
            dtype=dtype,
            runs=runs,
            exact=exact,
        )
        shape = KVShape.of_config(skeleton.config)
        plan = KVPlan.of(shape, dtype, device, settings)
        spanning = placement if placement and placement.spans else None
        causal_lm = _causal_lm(model, shape, plan, dtype, TILE if exact else None, spanning)
        if skeleton.rehearsed and not spanning:
            causal_lm.rehearse(most_layers=1)
        else:
            skeleton.window_tokens = causal_lm.rehearse()
        _check_window(skeleton.window_tokens, settings.max_sequence_tokens)
        if placement:  # what building took for a while would count as wasted for good (backend/retirement.py)
            torch.cuda.empty_cache()
        intake = Intake(
            tokenizer=tokenizer,
            vocabulary=skeleton.config.vocab_size,
            eos_ids=skeleton.eos_ids,
            max_sequence_tokens=settings.max_sequence_tokens,
            chat_template=self._chat_templates.get(Path(checkpoint)),
        )
        kind: Literal["exact", "best_effort"] = "exact" if exact and proven(ground) else "best_effort"
        exactness = Exactness(kind=kind, reason=reason, contract=facts.digest())
        return TorchEngine(causal_lm, intake, Schedule(plan.budget(), settings.step_tokens), exactness)


def _chat_template(checkpoint: Path) -> ChatTemplate | None:
    try:
        return load_chat_template(checkpoint)
    except (OSError, ValueError) as error:
        raise ModelNotSupported(f"the chat template in {checkpoint} cannot be read: {error}") from error


def _causal_lm(
    model: Any, shape: KVShape, plan: KVPlan, dtype: torch.dtype, tile: int | None, spanning: Placement | None
) -> CausalLM:
    if spanning is None:
        device = next(model.parameters()).device
        return CausalLM(model, KVMemory(shape, plan, dtype=dtype, device=device), tile)
    spanning.connect(model)
    kv_memory = SpannedKVMemory(shape, plan, dtype=dtype, runs=spanning.layer_runs())
    return CausalLM(model, kv_memory, tile, spanning.end)


def _rehearse(skeleton: Skeleton, dtype: torch.dtype) -> None:
    """A pass over weights of zero, so that forked workers inherit what a first pass sets up."""
    shape = KVShape.of_config(skeleton.config)
    plan = KVPlan(slots=1, total_tokens=16, max_sequence_tokens=16)
    kv_memory = KVMemory(shape, plan, dtype=dtype, device=torch.device("cpu"))
    try:
        zeros = skeleton.attach_zeros(dtype)
    except MemoryError as error:
        raise ModelNotSupported(f"config.json describes tensors that no memory here can hold: {error}") from error
    skeleton.window_tokens = CausalLM(zeros, kv_memory).rehearse()
    skeleton.detach()
    skeleton.rehearsed = True


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ModelNotSupported(f"mode {mode!r} is unknown to the torch engine; use {', '.join(MODES)}")


def _check_no_options(options: Mapping[str, object]) -> None:
    if options:
        raise ModelNotSupported(f"engine_options.{min(options)} is unknown; the torch engine has no options")


def _check_dtype(dtype: str) -> None:
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelNotSupported(f"dtype {dtype!r} is unknown to the torch engine; use auto, {', '.join(DTYPES)}")


def _check_length(config: object, max_sequence_tokens: int) -> None:
    if max_sequence_tokens < 2:
        raise ModelNotSupported(f"max_sequence_tokens is {max_sequence_tokens}; prompt and answer need 2 at least")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max_sequence_tokens > longest:
        raise ModelNotSupported(
            f"max_sequence_tokens is {max_sequence_tokens}, and the model has positions for {longest}; use at most that"
        )


def _check_window(window_tokens: int | None, max_sequence_tokens: int) -> None:
    if window_tokens is not None and max_sequence_tokens > window_tokens:
        raise ModelNotSupported(
            f"max_sequence_tokens is {max_sequence_tokens}, and the model's sliding window has {window_tokens} tokens; "
            "the torch engine serves it up to that length"
        )
