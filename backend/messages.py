"""The wire messages of a node, as plain values: stub ↔ worker, stub ↔ agent, worker ↔ agent, agent ↔ zygote.

Needs the standard library only, because the stub inside Triton imports it too. How a message travels is
`channel.py`'s. Positions count generated tokens: the first token after the prompt has position 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from serverless_triton.backend.client_json import parse_json_object

# The scheduler names each replica in the configuration it loads with: a load that differs in it makes a fresh
# instance at once, also where Triton still calls a dead one READY or is still unloading the last one.
REPLICA_PARAMETER = "replica"

# The request parameter by which a gateway names its span to the worker, in the form of W3C Trace Context.
TRACEPARENT = "traceparent"

MODES = ("auto", "exact", "fast")

# Parameters of a model's config.pbtxt that the scheduler takes out before anybody else sees it.
LIFECYCLE_PARAMETERS = ("keep_alive_s", "min_replicas", "max_replicas", "priority", "pinned")

Span = tuple[str, float, float]  # name, start and end in seconds on this host's monotonic clock
WireShare = tuple[str, int, int]  # device, parts and bytes of a device_map.Share
WireExactness = dict[str, str]  # the fields of an engines.protocol.Exactness


class ProtocolError(Exception):
    """A peer sent something that is no message of this link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Stub → worker: continue this prompt. Exactly one of `text`, `input_ids` and `messages`, a chat, is given."""

    request: int
    attempt: int = 0
    text: str | None = None
    input_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    resume_token_ids: list[int] = field(default_factory=list)
    sampling_parameters: dict[str, Any] = field(default_factory=dict)
    reservation: str | None = None  # the stream whose catch-up (of this attempt) it goes on from
    deadline_unix_s: int | None = None  # for the token state that it may be frozen into
    traceparent: str | None = None  # the span that asks for it

    @property
    def next_position(self) -> int:
        """Where the first token of the answer belongs."""
        return len(self.resume_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUp:
    """Stub → worker: a round of a catch-up. Hold the KV memory of prompt and tokens under (`reservation`, `attempt`).

    The ids are those from generated position `start_position` on. Answered by CaughtUp or Failed.
    """

    request: int
    reservation: str
    attempt: int
    start_position: int = 0
    text: str | None = None
    input_ids: list[int] | None = None
    resume_token_ids: list[int] = field(default_factory=list)
    sampling_parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def next_position(self) -> int:
        """Where the next round begins, or the answer."""
        return self.start_position + len(self.resume_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Stub → worker: end this request so that it can go on elsewhere. Its last Tokens hold its token state."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stub → worker: nobody waits for this request any more."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Worker → stub: the next tokens of a request and the text they release. The last one has a finish reason."""

    request: int
    first_position: int
    output_ids: list[int]
    text: str
    num_input_tokens: int
    prompt_ids: list[int] | None = None  # on a request's first message only
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "frozen"
    token_state: str | None = None  # where it is "frozen", as token_state.py writes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Worker → stub: a request without tokens yet is alive. `held_tokens` of `total_tokens` are in the KV memory."""

    request: int
    state: str  # "queued" or "prefilling"
    held_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """Worker → stub: a round's last word. The KV memory of so many tokens is held, prompt and generated ones."""

    request: int
    held_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Worker → stub: how its engine is doing; once a second while it changes.

    Counts of requests and tokens now, `last_batch_tokens` of the last step; the others count from the load on.
    """

    running: int
    waiting: int
    reserved: int
    kv_tokens_used: int
    kv_tokens_total: int
    steps: int
    prefilled_tokens: int
    preemptions: int
    last_batch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Worker → stub, agent → stub, worker → agent: a request or a load failed. `code` is a gRPC status name."""

    request: int = 0
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """Stub → agent: this stub wants the replica that its model configuration names, or a new one if it names none.

    With `attached`, it has its engine already and only makes itself known to an agent that was away; with `parked`, it
    had one once and waits for the next.
    """

    model: str
    parameters: dict[str, str]
    replica: str | None = None
    attached: bool = False
    parked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Agent → stub, with a connected socket to the worker. A parked stub answers with Attached."""

    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """Stub → agent: a parked stub has its new engine, and requests go to that from now on."""

    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello:
    """Worker → agent, on connecting. A worker that already serves says so: the agent may be a new one."""

    replica: str | None = None
    model: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    shares: list[WireShare] = field(default_factory=list)  # as in its Load
    exactness: WireExactness = field(default_factory=dict)  # as in its Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Agent → worker: become this model's engine. `shares`: which parts go to which device; none: all to the CPU."""

    replica: str
    model: str
    parameters: dict[str, str]
    shares: list[WireShare] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Worker → agent, worker → stub: the engine is warm. `tier` is where its bytes came from.

    `exactness` is what the engine promises of a stream that moves.
    """

    replica: str
    tier: str
    bytes: int
    spans: list[Span]
    exactness: WireExactness = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Agent → worker, with a connected socket to the stub."""

    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Agent → worker: leave at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Agent → zygote: one more idle worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learn:
    """Agent → zygote: build this model's skeleton and tokenizer, so that later workers inherit them."""

    parameters: dict[str, str]


Message = (
    Generate
    | CatchUp
    | Freeze
    | Cancel
    | Tokens
    | Position
    | CaughtUp
    | Stats
    | Failed
    | Acquire
    | Granted
    | Attached
    | WorkerHello
    | Load
    | Loaded
    | Serve
    | Retire
    | Fork
    | Learn
)
_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        Generate,
        CatchUp,
        Freeze,
        Cancel,
        Tokens,
        Position,
        CaughtUp,
        Stats,
        Failed,
        Acquire,
        Granted,
        Attached,
        WorkerHello,
        Load,
        Loaded,
        Serve,
        Retire,
        Fork,
        Learn,
    )
}
_FIELDS = {kind: tuple(f.name for f in fields(kind)) for kind in _TYPES.values()}


def encode(message: Message) -> bytes:
    """One message as JSON, its type's name under "type". Raises ProtocolError where it is nested too deeply."""
    kind = type(message)
    body = {name: getattr(message, name) for name in _FIELDS[kind]}
    try:
        return json.dumps({"type": kind.__name__, **body}, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ProtocolError(f"a {kind.__name__} is nested too deeply") from error


def decode(data: bytes | bytearray) -> Message:
    """The message that `encode` wrote. Raises ProtocolError on anything else."""
    try:
        body = json.loads(data)
        return _TYPES[body.pop("type")](**body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this node ({len(data)} bytes): {type(error).__name__}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model's config.pbtxt says about its engine, parsed once and strictly.

    `checkpoint` is a path or a URL. `files` is the directory with configuration and tokenizer, "" where that is the
    checkpoint itself. `mode` is "exact" where a resumed stream must be bit-identical, "fast" where it need not be, and
    "auto" for exact where that has been proven. `step_tokens` bounds the tokens of one step of the engine.
    `engine_options` is a JSON object of what only this kind of engine knows, "" for none; it is the engine's to check.
    `converted_bytes` is what an engine on a CPU takes for weights that it does not run in the dtype they are stored in.
    """

    checkpoint: str
    checkpoint_bytes: int
    kv_cache_bytes: int
    engine: str = "torch"
    dtype: str = "auto"
    max_sequence_tokens: int = 2048
    max_streams: int = 8
    threads: int = 1
    files: str = ""
    mode: str = "auto"
    step_tokens: int = 512
    engine_options: str = ""
    converted_bytes: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """`engine_options` as an object."""
        return parse_json_object(self.engine_options or "{}", "parameters.engine_options")

    @property
    def directory(self) -> str:
        """Where configuration and tokenizer are."""
        return self.files or self.checkpoint

    @property
    def device_bytes(self) -> int:
        """Bytes a replica takes of a CPU's memory beside the store's arena, where weights are that run as stored."""
        return self.kv_cache_bytes + self.converted_bytes

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> ModelSpec:
        """From config.pbtxt's `parameters`. Raises ValueError naming the parameter and what would be right."""
        known = {f.name for f in fields(cls)}
        for name in sorted(set(parameters) - known - {REPLICA_PARAMETER}):
            raise ValueError(
                f"parameters.{name} is unknown; known are {', '.join(sorted({*known, *LIFECYCLE_PARAMETERS}))}"
            )
        for name in ("checkpoint", "checkpoint_bytes", "kv_cache_bytes"):
            if not parameters.get(name):
                raise ValueError(f"parameters.{name} is missing; `serverless-triton add` writes it")
        texts: dict[str, Any] = {n: parameters[n] for n in _TEXTS if n in parameters}
        if texts.get("dtype", "auto") not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"parameters.dtype is {texts['dtype']!r}; use auto, float32, bfloat16 or float16")
        if texts.get("mode", "auto") not in MODES:
            raise ValueError(f"parameters.mode is {texts['mode']!r}; use auto, exact or fast")
        numbers: dict[str, Any] = {n: _count(n, parameters[n]) for n in _COUNTS if n in parameters}
        parse_json_object(texts.get("engine_options") or "{}", "parameters.engine_options")
        return cls(**texts, **numbers)


_TEXTS = ("checkpoint", "engine", "dtype", "files", "mode", "engine_options")
_COUNTS = (
    "checkpoint_bytes", "kv_cache_bytes", "converted_bytes",
    "max_sequence_tokens", "max_streams", "threads", "step_tokens",
)  # fmt: skip


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise ValueError(f"parameters.{name} is {text!r}; use a positive whole number")
    return int(text)
