"""Events become JSON lines by their templates; what is no event keeps its message."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.scheduler.config import ConfigError, parse_config
from serverless_triton.scheduler.log_lines import JsonLines, LogSettings, fields_of, set_up_logging


def record_of(template: Any, *values: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("s.t", logging.WARNING, __file__, 1, template, values, exc_info)


def test_the_names_of_a_template_are_the_members():
    record = record_of("replica_ready model=%s streams=%d s=%.3f reason=%r", "m", 3, 0.25, 'it\'s "so"')
    assert fields_of(record) == {
        "event": "replica_ready", "model": "m", "streams": 3, "s": 0.25, "reason": 'it\'s "so"',
    }  # fmt: skip


def test_an_events_own_name_may_depend_on_a_value():
    assert fields_of(record_of("agent_%s server=%s", "up", "a b")) == {"event": "agent_up", "server": "a b"}


def test_values_that_are_no_json_are_written_as_text():
    assert fields_of(record_of("start_failed error=%s", ValueError("no"))) == {"event": "start_failed", "error": "no"}


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("Task was destroyed but it is pending!", (), "Task was destroyed but it is pending!"),
        ("Error handling request from %s", ("::1",), "Error handling request from ::1"),
        ("took %.1f s of cpu=%d", (0.5, 1), "took 0.5 s of cpu=1"),
        ("event model=%(model)s", ({"model": "m"},), "event model=m"),
        ("", (), ""),
        (ValueError("no text"), (), "no text"),
    ],
)
def test_what_is_no_event_keeps_its_message(template: Any, values: tuple[Any, ...], message: str):
    assert fields_of(record_of(template, *values)) == {"message": message}


def test_a_line_is_one_object_whatever_it_says():
    line = JsonLines().format(record_of("failed reason=%s", 'a\nb "c" \u2028'))
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["logger"], read["event"]) == ("warning", "s.t", "failed")
    assert read["reason"] == 'a\nb "c" \u2028'
    assert datetime.fromisoformat(read["time"]).utcoffset() == timedelta(0)


def test_an_exception_is_a_member():
    try:
        raise KeyError("gone")
    except KeyError:
        line = json.loads(JsonLines().format(record_of("broke model=%s", "m", exc_info=sys.exc_info())))
    assert "KeyError: 'gone'" in line["exception"]
    assert line["model"] == "m"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()  # `force` would close pytest's
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_settings_choose_form_and_level(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]):
    set_up_logging(LogSettings(format="json", level="warning"))
    logging.getLogger("a").info("unheard model=%s", "m")
    logging.getLogger("a").warning("heard model=%s", "m")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "heard"


def test_an_unknown_form_is_refused_with_its_path():
    servers = [{"name": "a", "triton": "t", "agent": "a"}]
    with pytest.raises(ConfigError, match=r"configuration\.logs\.format: is 'xml'; give one of text, json"):
        parse_config({"model_repository": str(Path("/m")), "servers": servers, "logs": {"format": "xml"}})
