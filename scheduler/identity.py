"""Who asks: a tenant, the models that it may use, its rights and what it may take. Pure.

How a request shows its key is `gateway/access.py`'s, which keys there are `gateway/keys.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRule:
    """Models by name. Patterns are as a shell's: `*`, `?`, `[abc]`."""

    patterns: tuple[str, ...]

    def allows(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


ALL = ModelRule(patterns=("*",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much one key may take; None: as much as there is. Tokens are those of prompts and of answers."""

    requests_per_second: float | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    open_calls: int | None = None  # at the same time; None: as many as the gateway allows each key


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. `key` names the key that was shown, and is no secret; `weight` is the tenant's of the fair share."""

    tenant: str
    models: ModelRule
    admin: bool = False
    metrics: bool = False  # may read the gateway's metrics, as an admin may
    weight: int = 1
    key: str = ""
    quota: Quota = UNLIMITED


# Everybody, where no keys are configured.
ANONYMOUS = Caller(tenant="", models=ALL, admin=True)
