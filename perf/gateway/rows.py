"""Who is compared, as data: rows by name, and the fake models that they ask for.

`direct` rows ask the tritonserver itself, `gateway` rows the same server through the gateway. In `relay` rows a gateway
stands alone before a repeater: a tritonserver needs more of a small machine than the gateway does, and would be what is
measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from serverless_triton.backend.model_repository import EngineLimits

DIRECT, GATEWAY = WAYS = ("direct", "gateway")
PACED, FLOOD, IDLE, SWEEP = "paced", "flood", "idle", "sweep"
PACED_DIRECT, PACED_GATEWAY = (f"{PACED}.{way}" for way in WAYS)
IDLE_GATEWAY = f"{IDLE}.{GATEWAY}"
RELAY_1, RELAY_8 = "relay.1_token", "relay.8_tokens"
CONCURRENCY, RATE = "concurrency", "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams that are asked for at once, each with so many tokens, at `tokens_per_s` each (0: as fast as it goes)."""

    model: str
    streams: int
    tokens: int
    tokens_per_s: float

    @property
    def limits(self) -> EngineLimits:
        """Of the model: a token more than the prompt's one and the answer's."""
        options = json.dumps({"tokens_per_s": self.tokens_per_s, "tokens": "time"})
        return EngineLimits(
            engine="fake",
            max_sequence_tokens=self.tokens + 64,
            max_streams=self.streams,
            step_tokens=max(512, self.streams),  # all of them in a step
            engine_options=options,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """perf_analyzer's: so many requests at a time, and so many begun a second; a point takes about `seconds`."""

    load: Load
    concurrencies: tuple[int, ...]
    rates_per_s: tuple[int, ...]
    seconds: float

    @property
    def request_s(self) -> float:
        """What one request takes where nothing delays it."""
        return self.load.tokens / self.load.tokens_per_s

    def requests(self, kind: str, value: int) -> int:
        """How many are sent at a point of the sweep."""
        per_s = value if kind == RATE else value / self.request_s
        return max(value, round(per_s * self.seconds))


# Eight streams of 50 tokens a second for 12 s.
PACED_LOAD = Load(model=PACED, streams=8, tokens=600, tokens_per_s=50.0)
FLOOD_LOAD = Load(model=FLOOD, streams=16, tokens=4000, tokens_per_s=0.0)
# For 24 s, a token every 2 s.
IDLE_LOAD = Load(model=IDLE, streams=2000, tokens=12, tokens_per_s=0.5)
RELAY_LOAD = Load(model="relayed", streams=8, tokens=8000, tokens_per_s=0.0)
SWEEPS = Sweep(
    load=Load(model=SWEEP, streams=32, tokens=16, tokens_per_s=100.0),
    concurrencies=(1, 4, 16),
    rates_per_s=(5, 20, 50),
    seconds=4.0,
)
