"""API keys: the file, strictly; and its changes while the gateway runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serverless_triton.scheduler.config import ConfigError
from serverless_triton.scheduler.errors import Unauthenticated
from serverless_triton.scheduler.gateway.keys import KeyRing, parse_keys
from serverless_triton.scheduler.identity import UNLIMITED, Quota


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: str = "secret", **more: Any) -> dict[str, Any]:
    return {"name": "batch", "sha256": digest(key), "models": ["llama-*"], **more}


def test_a_key_is_found_by_what_was_shown():
    keys = parse_keys({"keys": [entry(), entry("other", name="web", admin=True)]})
    assert keys.caller("secret").key == "batch"
    assert keys.caller("other").admin
    assert keys.caller("secre") is None
    assert keys.caller(digest("secret")) is None


def test_a_key_has_no_right_and_no_limit_that_was_not_given():
    caller = parse_keys({"keys": [entry()]}).caller("secret")
    assert (caller.tenant, caller.admin, caller.weight, caller.quota) == ("batch", False, 1, UNLIMITED)
    assert caller.models.allows("llama-7b")
    assert not caller.models.allows("mistral")
    assert not caller.models.allows("x/llama-7b")


def test_a_key_has_what_was_given():
    more = {"tenant": "t", "weight": 3, "requests_per_second": 0.5, "tokens_per_minute": 6, "tokens_per_day": 7}
    caller = parse_keys({"keys": [entry(**more)]}).caller("secret")
    assert (caller.tenant, caller.weight) == ("t", 3)
    assert caller.quota == Quota(requests_per_second=0.5, tokens_per_minute=6, tokens_per_day=7)


def test_a_key_that_is_no_unicode_is_only_unknown():
    assert parse_keys({"keys": [entry()]}).caller("\udcff") is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "keys: give a list"),
        ({"keys": []}, "keys: give a list"),
        ({"keys": [entry()], "key": 1}, "nothing beside it"),
        ({"keys": [{"name": "a", "models": []}]}, r"keys\[0\].sha256: is missing"),
        ({"keys": [{"name": "a", "sha256": digest("a")}]}, r"keys\[0\].models: is missing"),
        ({"keys": [entry(sha256="abc")]}, r"keys\[0\].sha256: give"),
        ({"keys": [entry(sha256=digest("a").upper())]}, r"keys\[0\].sha256: give"),
        ({"keys": [entry(models="llama")]}, r"keys\[0\].models: give a list"),
        ({"keys": [entry(models=[1])]}, r"keys\[0\].models: give a list"),
        ({"keys": [entry(name="a b")]}, r"keys\[0\].name: give"),
        ({"keys": [entry(weight=0)]}, r"keys\[0\].weight: give a number from 1"),
        ({"keys": [entry(admin="yes")]}, r"keys\[0\].admin: is 'yes'; give true or false"),
        ({"keys": [entry(tokens_per_day=0)]}, r"keys\[0\].tokens_per_day: is 0"),
        ({"keys": [entry(tokens=1)]}, r"keys\[0\].tokens: is unknown"),
        ({"keys": [entry(), entry("other")]}, "every name must be another"),
        (
            {"keys": [entry(tenant="t", weight=1), entry("other", name="web", tenant="t", weight=8)]},
            "tenant 't' has keys of two weights",
        ),
        ({"keys": [entry(), entry(name="web")]}, "every sha256 must be another"),
    ],
)
def test_a_wrong_file_fails_with_its_path(value: object, words: str):
    with pytest.raises(ConfigError, match=words):
        parse_keys(value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    write(file, entry())
    return file


def write(file: Path, *entries: dict[str, Any]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"keys": list(entries)}))
    fresh.replace(file)


def test_no_key_and_an_unknown_one_are_refused(file: Path):
    ring = KeyRing(file)
    assert ring.caller("secret").key == "batch"
    with pytest.raises(Unauthenticated, match="no API key was given"):
        ring.caller(None)
    with pytest.raises(Unauthenticated, match="no API key was given"):
        ring.caller("")
    with pytest.raises(Unauthenticated, match="not known"):
        ring.caller("guess")


def test_a_changed_file_counts_at_once(file: Path):
    ring = KeyRing(file)
    write(file, entry("newer"))
    assert ring.caller("newer").key == "batch"
    with pytest.raises(Unauthenticated):
        ring.caller("secret")


@pytest.mark.parametrize("broken", ["keys: [", "keys: []", "\udcff"])
def test_a_broken_change_leaves_the_keys_as_they_were_and_is_said_once(file: Path, broken: str, caplog):
    ring = KeyRing(file)
    file.write_bytes(broken.encode(errors="surrogateescape"))
    assert ring.caller("secret").key == "batch"
    assert ring.caller("secret").key == "batch"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(file, entry("newer"))
    assert ring.caller("newer").key == "batch"


def test_a_file_that_goes_leaves_the_keys_as_they_were(file: Path):
    ring = KeyRing(file)
    file.unlink()
    assert ring.caller("secret").key == "batch"
    write(file, entry("newer"))
    assert ring.caller("newer").key == "batch"


def test_a_file_that_stays_away_takes_its_keys_with_it_and_that_is_said(file: Path, caplog: pytest.LogCaptureFixture):
    now_s = [0.0]
    ring = KeyRing(file, lambda: now_s[0])
    file.unlink()
    assert ring.caller("secret").key == "batch"
    now_s[0] = 11.0
    with pytest.raises(Unauthenticated):
        ring.caller("secret")
    assert [record.getMessage().split()[0] for record in caplog.records] == ["keys_file_gone", "keys_revoked"]
    write(file, entry())
    assert ring.caller("secret").key == "batch"


def test_a_date_that_there_is_not_leaves_the_keys_as_they_were(file: Path, caplog: pytest.LogCaptureFixture):
    ring = KeyRing(file)
    file.write_text("keys: 2024-13-45")
    assert ring.caller("secret").key == "batch"
    assert "keys_not_read" in caplog.text


def test_a_file_that_cannot_be_read_at_the_start_is_named(file: Path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file"):
        KeyRing(file.with_name("nothing.yaml"))
    file.write_text("keys: [")
    with pytest.raises(ConfigError, match=r"keys\.yaml: is no YAML"):
        KeyRing(file)
