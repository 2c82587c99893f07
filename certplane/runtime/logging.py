"""Log set-up of both programs: one event, one line.

Rules it keeps:

- Whatever is logged, a line stays one line: control characters are escaped (text) or encoded (JSON), so that nobody can
  forge a line or colour a terminal through a host name, a header or a CA's message.
- Fields go beside the message, not into it: `logger.info("call", extra={"fields": {"method": name}})`. In JSON they are
  keys of the object, in text `key=value` after the message.
- `request_id` is set for the length of a call and is part of every line written meanwhile.
- A destination that fails (a reader that has gone, a full disk, a closed descriptor) stops nobody and says nothing of
  itself a line: the lines are counted, and the count is the first line when it works again.
- Libraries that are known to log payloads, or much of nothing, are held at WARNING.

It never decides what is logged. Keys, tokens and secrets are kept out where the line is written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TextIO

from certplane.runtime.text import counted

LEVELS: Final = ("debug", "info", "warning", "error")

request_id: ContextVar[str] = ContextVar("certplane_request_id", default="")
"""The call that is being served; empty outside of calls."""

_TAMED: Final = (
    "acme", "alembic", "asyncio", "cloudflare", "grpc", "httpcore", "httpx", "josepy", "requests", "sqlalchemy",
    "urllib3",
)  # fmt: skip
"""acme and cloudflare log request bodies at DEBUG; the others announce every connection, statement or plugin."""


def setup(level: str, format: str, destination: str) -> None:  # noqa: A002 - the key's name in both configurations
    """Replace the handlers of the root logger.

    Args:
        level: One of `LEVELS`.
        format: `text` or `json`.
        destination: `stdout` or `stderr`; a service manager or a shell brings them into a file.

    Raises:
        ValueError: an unknown level, format or destination.
    """
    if level not in LEVELS or format not in ("text", "json") or destination not in ("stdout", "stderr"):
        raise ValueError(f"unknown log level {level!r}, format {format!r} or destination {destination!r}")
    handler = LineHandler(sys.stdout if destination == "stdout" else sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TAMED:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    # What logging itself would find out about the caller of each line costs more than the line; nobody reads it.
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False


class LineHandler(logging.StreamHandler[TextIO]):
    """A stream that may fail; what it could not take is told once it can be."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, and before it how many were lost since the last one."""
        if self.lost:
            self._tell_lost()
        if not self.lost:
            super().emit(record)
        else:
            self.lost += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        """Count what the destination refused; anything else is a bug in the line, which Python tells with its place."""
        if isinstance(sys.exc_info()[1], OSError) or self.stream.closed:
            self.lost += 1
        else:
            super().handleError(record)

    def _tell_lost(self) -> None:
        lost, self.lost = self.lost, 0
        text = f"{counted(lost, 'line')} of the log could not be written before this one"
        super().emit(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None))
        if self.lost:  # it can't be told either
            self.lost = lost


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the request's id, the fields, the exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. A field can't replace what the formatter itself writes."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := request_id.get():
            line["request_id"] = call
        fields = getattr(record, "fields", None)
        for key, value in (fields or {}).items():
            line.setdefault(key, value)
        if text := _exception(self, record):
            line["exception"] = text
        return _encode(line)


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value ...`; an exception follows on the same line, its line breaks escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        parts = [f"{_time(record)} {record.levelname} {record.name}: {escape(record.getMessage())}"]
        if call := request_id.get():
            parts.append(f"request_id={_value(call)}")
        fields = getattr(record, "fields", None)
        if fields:
            parts += [f"{key}={_value(value)}" for key, value in fields.items() if key != "request_id" or not call]
        if text := _exception(self, record):
            parts.append(f"exception={_value(text)}")
        return " ".join(parts)


_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, line and paragraph separators, what turns the direction of text, and lone surrogates."""


def escape(text: str) -> str:
    r"""`text` with its control characters as `\n`, `\x1b`, `\u202e`."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def _value(value: object) -> str:
    """`value` as the right side of `key=value`: quoted if a reader couldn't see where it ends."""
    text = escape(str(value))
    if text and not any(character in text for character in ' "='):
        return text
    return '"' + text.replace('"', '\\"') + '"'


_encode: Final = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _time(record: logging.LogRecord) -> str:
    second = int(record.created)
    return f"{_second(second)}.{int((record.created - second) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    """Formatting it costs more than the rest of a line, and lines come in bursts."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
