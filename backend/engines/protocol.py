"""What the worker asks of an engine, whatever computes the tokens.

An engine is a machine of steps, driven by one thread: the worker submits requests, calls `step()` while there is work,
and passes on the events. It never blocks on I/O and knows nothing of sockets, Triton or the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the fake engine and the agent do without torch
    import torch


class EngineError(Exception):
    """Base of what an engine raises.

    EngineError
    ├── InvalidRequest     the client's request cannot be served as it is; the message says what to change
    └── ModelNotSupported  this engine cannot run this checkpoint; the message says why
    """


class InvalidRequest(EngineError):
    pass


class ModelNotSupported(EngineError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request. Exactly one of `text` and `input_ids`; `resume_token_ids` were generated and must not come again."""

    request: int
    text: str | None = None
    input_ids: Sequence[int] | None = None
    resume_token_ids: Sequence[int] = ()
    sampling_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New tokens of one request: `output_ids` at generated positions `first_position`..., and the text they release."""

    request: int
    first_position: int
    output_ids: tuple[int, ...]
    text: str
    num_input_tokens: int
    prompt_ids: tuple[int, ...] | None = None  # on a request's first event only
    finish_reason: str | None = None  # "stop", "length", "cancelled"; the event that has one is the request's last


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """A request's last event when it fails. `code` is a gRPC status name."""

    request: int
    code: str
    message: str


EngineEvent = TokenEvent | FailureEvent


class Engine(Protocol):
    """Exactly one terminal event per submitted request: a TokenEvent with a finish reason or a FailureEvent."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises InvalidRequest, after which no event of it comes."""

    def cancel(self, request: int) -> None:
        """Its terminal event comes from the next step; its KV memory is free then. Unknown or ended: ignored."""

    def step(self) -> list[EngineEvent]:
        """Admit what fits, advance every admitted request, return what happened, in order of request."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""

    def close(self) -> None:
        """Let go of tensors and memory. Requests still running get no event."""


class EngineBuilder(Protocol):
    """Makes engines of one kind. The expensive, weight-free parts are cached in the builder and survive a fork."""

    def learn(self, checkpoint: str, dtype: str) -> None:
        """Prepare what needs no weights (skeleton, tokenizer). No parallel region, no CUDA, no batch call.

        Raises ModelNotSupported.
        """

    def build(
        self,
        checkpoint: str,
        tensors: Mapping[str, torch.Tensor],
        *,
        dtype: str,
        max_sequence_tokens: int,
        max_streams: int,
    ) -> Engine:
        """An engine over these tensors, warm: the first request finds it set up. Raises ModelNotSupported."""
