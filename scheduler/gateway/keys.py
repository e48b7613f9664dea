"""The API keys of a gateway: a YAML file of their digests, read again whenever it changes.

    keys:
      - name: batch                # for logs; limits are counted under it
        sha256: 9f86d0...          # of the key: printf %s "$KEY" | sha256sum
        models: ["llama-*"]        # what it may use; everything else is as if it were not there
        tenant: research           # default: the key's name
        weight: 2                  # of the tenant's fair share
        admin: false               # load, unload, /v2/cluster/*
        metrics: false             # /metrics, as an admin may
        requests_per_second: 10
        tokens_per_minute: 60000
        tokens_per_day: 1000000
        open_calls: 100

A key must be random and long, as `openssl rand -hex 32` makes it: that is what makes a plain digest safe to keep.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from serverless_triton.scheduler.config import ConfigError, parse_dataclass
from serverless_triton.scheduler.errors import Unauthenticated
from serverless_triton.scheduler.identity import Caller, ModelRule, Quota

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_GONE_S = 10.0  # a file that is replaced in two steps is not there for a moment
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One key as the file has it. `models` is a list of patterns."""

    name: str
    sha256: str
    models: Any
    tenant: str | None = None
    weight: int = 1
    admin: bool = False
    metrics: bool = False
    requests_per_second: float | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    open_calls: int | None = None


class Keys:
    """The keys of one reading of the file, by their digests."""

    def __init__(self, callers: Sequence[tuple[bytes, Caller]]) -> None:
        self._callers = tuple(callers)

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, key: str) -> Caller | None:
        """Whose key it is. Takes as long for one key as for any other."""
        shown = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
        found = None
        for digest, caller in self._callers:
            if hmac.compare_digest(digest, shown):
                found = caller
        return found


def parse_keys(value: object) -> Keys:
    """Raises ConfigError with the path of what is wrong."""
    entries = value.get("keys") if isinstance(value, dict) and value.keys() == {"keys"} else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError("keys: give a list of at least one key with name, sha256 and models, and nothing beside it")
    parsed = [_parse_key(entry, f"keys[{number}]") for number, entry in enumerate(entries)]
    for what, found in (("name", [caller.key for _, caller in parsed]), ("sha256", [digest for digest, _ in parsed])):
        if len(set(found)) != len(found):
            raise ConfigError(f"keys: every {what} must be another one")
    _check_tenants([caller for _, caller in parsed])
    return Keys(parsed)


def _check_tenants(callers: Sequence[Caller]) -> None:
    weights = {caller.tenant: caller.weight for caller in callers}
    for caller in callers:
        if weights[caller.tenant] != caller.weight:
            raise ConfigError(f"keys: tenant '{caller.tenant}' has keys of two weights; give all of them the same")


def _parse_key(value: object, path: str) -> tuple[bytes, Caller]:
    entry = parse_dataclass(_Entry, value, path)
    if not _NAME.fullmatch(entry.name):
        raise ConfigError(f"{path}.name: give up to 64 letters, digits, '_', '-' and '.'")
    if not _DIGEST.fullmatch(entry.sha256):
        raise ConfigError(f"{path}.sha256: give the key's SHA-256 as 64 small hexadecimal digits")
    if entry.weight < 1:
        raise ConfigError(f"{path}.weight: give a number from 1")
    caller = Caller(
        tenant=entry.tenant or entry.name,
        models=ModelRule(patterns=_patterns(entry.models, f"{path}.models")),
        admin=entry.admin,
        metrics=entry.metrics,
        weight=entry.weight,
        key=entry.name,
        quota=_quota(entry, path),
    )
    return bytes.fromhex(entry.sha256), caller


def _patterns(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise ConfigError(f'{path}: give a list of model names or patterns, such as ["llama-*"], or ["*"] for all')
    return tuple(value)


def _quota(entry: _Entry, path: str) -> Quota:
    values = {field.name: getattr(entry, field.name) for field in fields(Quota)}
    for name, value in values.items():
        if value == 0:
            raise ConfigError(f"{path}.{name}: is 0; give a number above it, or leave it out for no limit")
    return Quota(**values)


class KeyRing:
    """The keys of a file. Looks at the file's times with every question, and keeps what it had where it is broken.

    A file that is gone for longer than it takes to put another in its place takes its keys with it.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds. Raises ConfigError."""
        self._file = file
        self._clock = clock
        self._gone_since_s: float | None = None
        self._stamp = self._look()
        try:
            self._keys = self._read()
        except (OSError, ConfigError) as error:
            raise _named(file, error) from error

    def caller(self, key: str | None) -> Caller:
        """Whose key it is. Raises Unauthenticated."""
        self._follow()
        if not key:
            raise Unauthenticated("no API key was given: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        caller = self._keys.caller(key)
        if caller is None:
            raise Unauthenticated("the API key is not known here")
        return caller

    def _follow(self) -> None:
        stamp = self._look()
        if stamp is None:
            self._miss()
            return
        self._gone_since_s = None
        if stamp == self._stamp:
            return
        self._stamp = stamp  # a file that is broken is not read again before it changes
        try:
            self._keys = self._read()
        except (OSError, ConfigError) as error:
            log.error("keys_not_read error=%s", _named(self._file, error))
        else:
            log.info("keys_read file=%s keys=%d", self._file, len(self._keys))

    def _miss(self) -> None:
        """The file cannot be found."""
        self._stamp, now_s = None, self._clock()
        if self._gone_since_s is None:
            self._gone_since_s = now_s
            log.error("keys_file_gone file=%s keys_end_in_s=%g", self._file, _GONE_S)
        elif now_s - self._gone_since_s >= _GONE_S and len(self._keys):
            self._keys = Keys(())
            log.error("keys_revoked file=%s: it is gone, so every key is refused", self._file)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> Keys:
        try:
            content = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not, no UTF-8
            raise ConfigError("is no YAML") from error  # whose own words would quote the file
        return parse_keys(content)


def _named(file: Path, error: OSError | ConfigError) -> ConfigError:
    reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
    return ConfigError(f"{file}: {reason}")
