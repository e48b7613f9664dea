"""Lines of the scheduler's log: `event key=value …` for people, or the same as JSON for machines, one object a line.

Callers write events: `logger.info("replica_ready model=%s server=%s", model, server)`. The names in such a template are
the members of the JSON object, so there is one way to log. What is logged is the callers' business: a stream is
`request_id`, its id's first characters (the whole id is a capability), and prompt text is never logged.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
REQUEST_ID_LENGTH = 8
_FIELD = re.compile(r"(\w+)=%[-#0 +]*[\d.]*[a-zA-Z]")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How the scheduler's process logs, to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


def set_up_logging(settings: LogSettings) -> None:
    """Of the whole process. Replaces what was there."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """`time` is UTC in ISO 8601 with milliseconds. What is no event, as other packages log, has a `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The event's name and the members of its template."""
    event, *words = str(record.msg).split(" ")
    names = [match[1] for word in words if (match := _FIELD.fullmatch(word))]
    values = record.args if isinstance(record.args, tuple) else ()
    in_event = event.count("%")
    if not event or len(names) != len(words) or len(values) != in_event + len(names):
        return {"message": record.getMessage()}
    shown = (value if isinstance(value, _PLAIN) else str(value) for value in values[in_event:])
    return {"event": event % values[:in_event], **dict(zip(names, shown, strict=True))}
