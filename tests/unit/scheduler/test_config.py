"""The scheduler's configuration: parsed once, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serverless_triton.scheduler.config import ConfigError, load_config, parse_config
from serverless_triton.scheduler.gateway.settings import ServerTLS

SERVER = {"name": "s0", "triton": "127.0.0.1:1", "agent": "127.0.0.1:2"}
MINIMAL: dict[str, Any] = {"model_repository": "/models", "servers": [SERVER]}


def test_a_minimal_configuration_gets_the_defaults():
    config = parse_config(MINIMAL)
    assert config.model_repository == Path("/models")
    assert (config.gateway.host, config.gateway.http_port, config.gateway.grpc_port) == ("127.0.0.1", 8000, 8001)
    assert config.servers[0].triton == "127.0.0.1:1"


def test_nested_values_are_read():
    config = parse_config({**MINIMAL, "gateway": {"relay": {"max_deaths": 5, "overall_timeout_s": None}}})
    assert config.gateway.relay.max_deaths == 5
    assert config.gateway.relay.overall_timeout_s is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"servers": []}, "servers: give a list"),
        ({"servers": [SERVER, SERVER]}, "servers: names must differ"),
        ({"servers": [{"name": "s0"}]}, r"servers\[0\].triton: is missing"),
        ({"model_repositry": "/x"}, "configuration.model_repositry: is unknown"),
        ({"gateway": {"http_port": "80"}}, "configuration.gateway.http_port: is '80'; give a whole number"),
        ({"gateway": {"http_port": True}}, "http_port"),
        ({"gateway": {"relay": {"max_death": 1}}}, "configuration.gateway.relay.max_death: is unknown"),
        ({"control": {"load_timeout_s": -1}}, "give a number from 0"),
        ({"control": {"load_timeout_s": float("nan")}}, "give a number from 0"),
        ({"control": {"load_timeout_s": float("inf")}}, "give a number from 0"),
        ({"control": 3}, "must be a mapping"),
    ],
)
def test_wrong_configuration_fails_with_its_path(change: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        parse_config({**MINIMAL, **change})


def test_what_may_be_left_out_is_read_as_strictly_where_it_is_given():
    files = {"certificate_file": "/a.pem", "key_file": "/a.key"}
    tls = parse_config({**MINIMAL, "gateway": {"tls": files}}).gateway.tls
    assert tls == ServerTLS(certificate_file=Path("/a.pem"), key_file=Path("/a.key"))
    assert parse_config({**MINIMAL, "gateway": {"tls": None}}).gateway.tls is None
    with pytest.raises(ConfigError, match=r"configuration\.gateway\.tls\.key_file: is missing"):
        parse_config({**MINIMAL, "gateway": {"tls": {"certificate_file": "/a.pem"}}})
    with pytest.raises(ConfigError, match=r"configuration\.node_tls: must be a mapping"):
        parse_config({**MINIMAL, "node_tls": "/a.pem"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "", "gateway.example"])
def test_other_machines_get_no_rights_by_accident(host: str):
    with pytest.raises(ConfigError, match=r"configuration\.gateway\.host: .* give gateway\.keys_file, or"):
        parse_config({**MINIMAL, "gateway": {"host": host}})
    for meant in ({"keys_file": "/keys.yaml"}, {"allow_anonymous": True}):
        assert parse_config({**MINIMAL, "gateway": {"host": host, **meant}}).gateway.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str):
    assert parse_config({**MINIMAL, "gateway": {"host": host}}).gateway.keys_file is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        load_config(tmp_path / "nothing.yaml")
