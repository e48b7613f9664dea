"""What the worker asks of an engine, whatever computes the tokens.

An engine is a machine of steps, driven by one thread: the worker submits requests, calls `step()` while there is work,
and passes on the events. It never blocks on I/O and knows nothing of sockets, Triton or the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.token_state import TokenState

if TYPE_CHECKING:  # the fake engine and the agent do without torch
    import torch

RESERVATION_S = 10.0  # how long a reservation outlives its last round
POSITION_S = 1.0  # how often a request that waits or prefills tells its position, where steps are not longer


class EngineError(Exception):
    """Base of what an engine raises.

    EngineError
    ├── InvalidRequest     the client's request cannot be served as it is; the message says what to change
    ├── UnknownRequest     no request of that number is waiting or running
    └── ModelNotSupported  this engine cannot run this checkpoint; the message says why
    """


class InvalidRequest(EngineError):
    pass


class UnknownRequest(EngineError):
    pass


class ModelNotSupported(EngineError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The key under which a stream's KV is recomputed ahead of its move. A newer attempt replaces an older one."""

    stream: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request. Exactly one of `text`, `input_ids` and `messages`; `resume_token_ids` were generated and must not
    come again.

    `messages` is a chat, which the model's chat template makes a prompt of. A request that resumes one had better give
    the `input_ids` that its first event told: a template may write the date.

    `reservation` takes over what was caught up under it. That works once; one that is unknown or has expired costs only
    the time of computing again. `deadline_unix_s` does nothing here: it goes on with the state that `freeze` returns.
    """

    request: int
    text: str | None = None
    input_ids: Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    resume_token_ids: Sequence[int] = ()
    sampling_parameters: Mapping[str, Any] = field(default_factory=dict)
    reservation: Reservation | None = None
    deadline_unix_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpRequest:
    """One round: hold the KV of the prompt and of all tokens generated so far, under `reservation`.

    `resume_token_ids` are those from generated position `start_position` on. They may repeat what earlier rounds
    brought and must not leave a gap after it. `request` numbers the round, among all requests.
    """

    request: int
    reservation: Reservation
    text: str | None = None
    input_ids: Sequence[int] | None = None
    resume_token_ids: Sequence[int] = ()
    sampling_parameters: Mapping[str, Any] = field(default_factory=dict)
    start_position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New tokens of one request: `output_ids` at generated positions `first_position`..., and the text they release."""

    request: int
    first_position: int
    output_ids: tuple[int, ...]
    text: str
    num_input_tokens: int
    prompt_ids: tuple[int, ...] | None = None  # on a request's first event only
    finish_reason: str | None = None  # "stop", "length", "cancelled", "frozen"; the event that has one is the last


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """A request's last event when it fails. `code` is a gRPC status name."""

    request: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUpEvent:
    """A round's last event. `held_tokens`: prompt and generated tokens whose KV is held."""

    request: int
    held_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionEvent:
    """A sign of life of a request without tokens to tell, at most one in POSITION_S. Never a request's last."""

    request: int
    state: Literal["queued", "prefilling"]
    held_tokens: int
    total_tokens: int


EngineEvent = TokenEvent | FailureEvent | CaughtUpEvent | PositionEvent


def is_terminal(event: EngineEvent) -> bool:
    """Whether it is its request's last."""
    if isinstance(event, TokenEvent):
        return event.finish_reason is not None
    return not isinstance(event, PositionEvent)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Figures of now (the first five), of the last step (`last_batch_tokens`), and since the engine was built."""

    running: int
    waiting: int
    reserved: int
    kv_tokens_used: int
    kv_tokens_total: int
    steps: int
    generated_tokens: int
    prefilled_tokens: int  # recomputed ones included
    preemptions: int
    last_batch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """Whether a stream that moves between engines of one `contract` goes on to the bit as if it had stayed.

    `contract` is the digest of all that must be equal for it (contract.py). `reason` says why it is promised or not.
    """

    kind: Literal["exact", "best_effort"]
    reason: str
    contract: str


class Engine(Protocol):
    """Exactly one terminal event per request and per round: see `is_terminal`."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises InvalidRequest, after which no event of it comes; also for a reservation used up."""

    def catch_up(self, request: CatchUpRequest) -> None:
        """Queue a round. Raises InvalidRequest: for a gap, an older attempt, or what `submit` would refuse."""

    def cancel(self, request: int) -> None:
        """Its terminal event comes from the next step; its KV memory is free then. Unknown or ended: ignored.

        Cancelling a round drops its reservation.
        """

    def freeze(self, request: int) -> TokenState:
        """Ends a generation at the next step, with finish reason "frozen" and no further token; the state goes on.

        Raises UnknownRequest, also for one that has ended and for a round.
        """

    def release(self, reservation: Reservation) -> None:
        """Drop what is held under it; its rounds end as cancelled. Unknown: ignored."""

    def expire(self, now_s: float) -> None:
        """Drop the reservations without a round for RESERVATION_S. `now_s` is by the engine's clock, time.monotonic."""

    def step(self) -> list[EngineEvent]:
        """Admit what fits, advance what runs under the token budget, return what happened, in order of request."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything. An idle reservation is none."""

    @property
    def exactness(self) -> Exactness:
        """What this engine promises of a stream that moves."""

    def stats(self) -> EngineStats:
        """Cheap enough for every step."""

    def close(self) -> None:
        """Let go of tensors and memory. Requests still running get no event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine is to run a model. `kv_cache_bytes` None means enough for `max_streams` sequences of full length.

    `mode`: "exact" and "fast" as their names say, "auto" exact where that is proven and fast elsewhere. A step computes
    at most `step_tokens`, or one of every stream where that is more. `shares` says which parts of the model go to which
    device; none: all stay where their tensors are. `options` are those of one kind of engine.
    """

    dtype: str = "auto"
    mode: str = "auto"
    max_sequence_tokens: int = 2048
    max_streams: int = 8
    kv_cache_bytes: int | None = None
    step_tokens: int = 512
    threads: int = 1
    shares: tuple[Share, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


NO_DIGESTS: Mapping[str, Sequence[str]] = MappingProxyType({})


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
        settings: EngineSettings,
        chunk_digests: Mapping[str, Sequence[str]] = NO_DIGESTS,
    ) -> Engine:
        """An engine over these tensors, warm: the first request finds it set up. Raises ModelNotSupported.

        `chunk_digests`: file name → digests of its chunks in order, where they are known to be those of the tensors.
        """
