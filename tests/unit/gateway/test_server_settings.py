"""Trace and log settings: what is sound and what is a change, over HTTP and over gRPC."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.server_settings import (
    FixedFile,
    Unavailable,
    check_log,
    check_trace,
    log_from_json,
    log_from_message,
    trace_from_json,
    trace_from_message,
)


def trace_message(**settings: list[str]):
    request = pb.TraceSettingRequest()
    for name, values in settings.items():
        request.settings[name].value.extend(values)
    return request.settings


def log_message(**settings: dict[str, object]):
    request = pb.LogSettingsRequest()
    for name, value in settings.items():
        request.settings[name].CopyFrom(pb.LogSettingsRequest.SettingValue(**value))
    return request.settings


@pytest.mark.parametrize(
    "change",
    [
        trace_from_json({}),
        trace_from_json({"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0"}),
        trace_from_json({"trace_level": None, "trace_rate": None}),
        trace_from_json({"trace_level": ["nobody knows"], "nothing": 1}),
        trace_from_message(trace_message(trace_level=["OFF"], trace_rate=["1000"])),
        trace_from_message(trace_message(trace_level=[], trace_rate=[], nothing=["1"])),
    ],
)
def test_trace_settings_that_are_so_already_are_no_change(change):
    check_trace(change, "refused")


@pytest.mark.parametrize(
    "change",
    [
        trace_from_json({"trace_level": ["TIMESTAMPS"]}),
        trace_from_json({"trace_rate": "1"}),
        trace_from_message(trace_message(trace_level=["TENSORS", "TIMESTAMPS"])),
        trace_from_message(trace_message(trace_count=["7"])),
    ],
)
def test_other_trace_settings_are_refused(change):
    with pytest.raises(Unavailable, match="refused"):
        check_trace(change, "refused")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trace_rate": "often"}, "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": 5}, "attempt to access JSON non-string as string"),
        ({"trace_rate": "9" * 5000}, "value is out of range [ 0, 4294967295 ], got: 999"),
        ({"trace_count": "-2"}, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ({"trace_level": ["OFF", "TENSORS"]}, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": 5}, "attempt to access JSON non-array as array"),
    ],
)
def test_trace_settings_that_make_no_sense(fields, words):
    with pytest.raises(InvalidRequest) as caught:
        trace_from_json(fields)
    assert words in str(caught.value)


def test_a_setting_over_grpc_has_one_value():
    with pytest.raises(InvalidRequest, match="expect only 1 value for 'trace_rate'"):
        trace_from_message(trace_message(trace_rate=["1", "2"]))


def test_log_settings_that_are_so_already_are_no_change():
    check_log(log_from_json({"log_info": True, "log_verbose_level": 0, "log_format": "default", "log_file": None}))
    check_log(log_from_message(log_message(log_error={"bool_param": True}, log_verbose_level={"uint32_param": 0})))


@pytest.mark.parametrize(
    "change",
    [
        log_from_json({"log_info": False}),
        log_from_json({"log_format": "ISO8601"}),
        log_from_message(log_message(log_verbose_level={"uint32_param": 1})),
    ],
)
def test_other_log_settings_are_refused(change):
    with pytest.raises(Unavailable, match="does not support dynamic logging"):
        check_log(change)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"log_info": 5}, "attempt to access JSON non-boolean as boolean"),
        ({"log_verbose_level": -1}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"log_format": "WAT"}, "got: WAT"),
    ],
)
def test_log_settings_that_make_no_sense(fields, words):
    with pytest.raises(InvalidRequest, match=words):
        log_from_json(fields)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"log_info": {"uint32_param": 1}}, "expect boolean for 'log_info'"),
        ({"log_verbose_level": {"string_param": "1"}}, "expect int32 for 'log_verbose_level'"),
        ({"log_format": {"string_param": "WAT"}}, "invalid argument for log_format, got: WAT"),
    ],
)
def test_log_settings_over_grpc_that_make_no_sense(settings, words):
    with pytest.raises(InvalidRequest, match=words):
        log_from_message(log_message(**settings))


def test_no_client_names_a_file_of_the_server():
    for ask in (
        lambda: trace_from_json({"trace_file": "x"}),
        lambda: log_from_json({"log_file": "x"}),
        lambda: trace_from_message(trace_message(trace_file=["x"])),
        lambda: log_from_message(log_message(log_file={"string_param": "x"})),
    ):
        with pytest.raises(FixedFile):
            ask()
