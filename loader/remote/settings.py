"""How the remote tier reads: how many requests at once, how fast, how patiently, with which hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .urls import is_loopback

HUB_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """How remote checkpoints are read.

    `concurrency`: chunks asked for at once. `bytes_per_second`: limit of all loads together, 0 for none.

    One request ends after `request_timeout_s`, or after `stall_timeout_s` without a byte; what it brought is kept. A
    load fails when for `patience_s` no chunk arrived, an open when for `open_patience_s` there was no answer. A URL
    that was resolved is not asked about again for `freshness_s`. Credentials for s3:// are obstore's business: the
    usual AWS_* variables. Raises ValueError for values that cannot work.
    """

    concurrency: int = 16
    bytes_per_second: int = 0
    connect_timeout_s: float = 5.0
    stall_timeout_s: float = 20.0
    request_timeout_s: float = 60.0
    patience_s: float = 180.0
    open_patience_s: float = 20.0
    freshness_s: float = 10.0
    allow_http: bool = False
    hub_endpoint: str = HUB_ENDPOINT
    hub_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 256:
            raise ValueError(f"remote concurrency must be between 1 and 256, not {self.concurrency}")
        if self.bytes_per_second < 0:
            raise ValueError(f"remote_bytes_per_second must be 0 (no limit) or more, not {self.bytes_per_second}")
        for name in ("connect_timeout_s", "stall_timeout_s", "request_timeout_s", "patience_s", "open_patience_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

        hub = urlsplit(self.hub_endpoint)
        is_safe = hub.scheme == "https" or self.allow_http or is_loopback(hub.hostname or "")
        if not is_safe or not hub.hostname or "@" in hub.netloc or hub.query:
            raise ValueError("HF_ENDPOINT must be an https:// URL without credentials")

    @staticmethod
    def from_environment(*, bytes_per_second: int = 0, environment: Mapping[str, str] | None = None) -> RemoteSettings:
        """The settings of this process: HF_ENDPOINT and HF_TOKEN are the hub's own variables."""
        known = os.environ if environment is None else environment
        return RemoteSettings(
            bytes_per_second=bytes_per_second,
            hub_endpoint=known.get("HF_ENDPOINT", "").rstrip("/") or HUB_ENDPOINT,
            hub_token=known.get("HF_TOKEN", "").strip(),
        )
