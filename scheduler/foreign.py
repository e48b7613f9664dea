"""What a model of another backend than ours needs, as its config.pbtxt says (pure).

Such a model is Triton's own: there is no engine and no agent's worker, its start is Triton's load and its end Triton's
unload. What it takes of a server's memory is declared here, or learned from its first load (`learned.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

DEVICE_MEMORY = "device_memory_bytes"
HOST_MEMORY = "host_memory_bytes"
MAX_STREAMS = "max_streams"
# Triton queues and batches for itself, so this only says when a second replica is worth starting.
DEFAULT_MAX_STREAMS = 64
TRITONS_IDLE_MICROSECONDS = 1_000_000  # where a model's sequence batching does not say
_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """Bytes are a replica's; None where nothing is declared."""

    device_bytes: int | None
    host_bytes: int | None
    max_streams: int = DEFAULT_MAX_STREAMS
    members: tuple[str, ...] = ()  # of an ensemble, each once
    sequence_idle_s: float | None = None  # how long a sequence may wait for its next request; None: it knows none


def parse_foreign(config: model_config_pb2.ModelConfig) -> ForeignModel:
    """Raises ValueError naming the parameter that is no number."""
    max_streams = _whole_number(config, MAX_STREAMS)
    if max_streams == 0:
        raise ValueError(f"parameter '{MAX_STREAMS}' is 0; use a whole number from 1")
    return ForeignModel(
        device_bytes=_whole_number(config, DEVICE_MEMORY),
        host_bytes=_whole_number(config, HOST_MEMORY),
        max_streams=DEFAULT_MAX_STREAMS if max_streams is None else max_streams,
        members=tuple(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)),
        sequence_idle_s=_sequence_idle_s(config),
    )


def _sequence_idle_s(config: model_config_pb2.ModelConfig) -> float | None:
    if not config.HasField("sequence_batching"):
        return None
    return float(config.sequence_batching.max_sequence_idle_microseconds or TRITONS_IDLE_MICROSECONDS) / 1e6


def _whole_number(config: model_config_pb2.ModelConfig, name: str) -> int | None:
    if name not in config.parameters:
        return None
    said = str(config.parameters[name].string_value)
    if not _WHOLE_NUMBER.fullmatch(said):
        raise ValueError(f"parameter '{name}' is {said[:64]!r}; use a whole number of up to 18 digits")
    return int(said)
