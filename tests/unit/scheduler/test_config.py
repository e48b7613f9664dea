"""The scheduler's configuration: parsed once, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serverless_triton.scheduler.config import ConfigError, load_config, parse_config
from serverless_triton.scheduler.gateway.settings import ServerTLS
from serverless_triton.scheduler.state.settings import EtcdTLS

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
        (
            {"control": {"policy": "fastest"}},
            "control.policy: is 'fastest'; give one of startup_time, random, locality, ",
        ),
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


REGISTRATION = {"registration": {"port": 8004}}


def test_servers_may_all_come_by_announcing_themselves():
    config = parse_config({"model_repository": "/models", **REGISTRATION})
    assert config.servers == ()
    assert config.registration is not None
    assert (config.registration.host, config.registration.patience_s) == ("127.0.0.1", 6.0)
    assert len(parse_config({**MINIMAL, **REGISTRATION}).servers) == 1
    assert parse_config(MINIMAL).registration is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heartbeat_s": 0}, "heartbeat_s: is 0; give seconds above 0"),
        ({"missed_beats": 0}, "missed_beats: is 0; give a number from 1"),
        ({"max_servers": 0}, "max_servers: is 0; give a number from 1"),
        ({"port": 0}, "port: is 0; give a port"),
        ({"port": 65536}, "port: is 65536; give a port"),
        ({"heartbeats": 1}, "heartbeats: is unknown"),
        ({"host": "10.0.0.1"}, "host: other machines reach '10.0.0.1' .* give configuration.secret_file"),
    ],
)
def test_wrong_registration_fails_with_its_path(change: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=rf"configuration\.registration\.{words}"):
        parse_config({**MINIMAL, "registration": {"port": 8004, **change}})


def test_registration_for_other_machines_wants_a_secret():
    wide = {"registration": {"port": 8004, "host": "10.0.0.1"}, "secret_file": "/secret"}
    assert parse_config({**MINIMAL, **wide}).registration is not None


ETCD = {"kind": "etcd", "endpoints": ["a:2379", "b:2379"], "address": "127.0.0.1:8003"}


def test_an_etcd_for_several_schedulers_is_read():
    state = parse_config({**MINIMAL, "state": {**ETCD, "lease_s": 10, "tls": {"ca_file": "/ca.pem"}}}).state
    assert (state.endpoints, state.lease_s, state.prefix) == (("a:2379", "b:2379"), 10, "serverless-triton/")
    assert state.tls == EtcdTLS(ca_file=Path("/ca.pem"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"kind": "consul"}, r"state\.kind: is 'consul'; give one of sqlite, etcd"),
        ({"endpoints": ["a:1"]}, r"state\.endpoints: is etcd's; give kind: etcd"),
        ({"address": "a:1"}, r"state\.address: is etcd's"),
        ({**ETCD, "path": "/x"}, r"state\.path: is SQLite's; give kind: sqlite"),
        ({**ETCD, "endpoints": []}, r"state\.endpoints: give at least one member"),
        ({**ETCD, "endpoints": "a:1"}, r"state\.endpoints: is 'a:1'; give a list"),
        ({**ETCD, "endpoints": [1]}, r"state\.endpoints\[0\]: is 1; give a string"),
        ({**ETCD, "endpoints": ["http://a:1"]}, r"state\.endpoints\[0\]: .*without a scheme"),
        ({**ETCD, "endpoints": ["a:1", "a:1"]}, r"state\.endpoints: must differ"),
        ({**ETCD, "address": None}, r"state\.address: is missing"),
        ({**ETCD, "address": "a:99999"}, r"state\.address: is 'a:99999'; give host:port"),
        (
            {**ETCD, "address": "10.0.0.1:8003"},
            r"state\.address: other machines reach .* give configuration\.secret_file",
        ),
        ({**ETCD, "lease_s": 1}, r"state\.lease_s: is 1; give 2 to 60 seconds"),
        ({**ETCD, "lease_s": 5.5}, r"state\.lease_s: is 5\.5; give a whole number"),
        ({**ETCD, "prefix": "x"}, r"state\.prefix: is 'x'; give printable characters that end with a slash"),
        (
            {**ETCD, "tls": {"ca_file": "/c", "key_file": "/k"}},
            r"state\.tls: give certificate_file and key_file together",
        ),
        ({**ETCD, "tls": {"key": "/k"}}, r"state\.tls\.key: is unknown; known are ca_file"),
    ],
)
def test_a_wrong_state_fails_with_its_path_and_what_would_be_right(state: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        parse_config({**MINIMAL, "state": state})
