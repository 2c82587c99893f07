"""The child's log as a part of the broker's: records are sent, and written there as they would have been here.

Level, logger, time, fields, exception and request id are kept. Whatever can't be sent (there is no connection, or the
broker doesn't read) goes to the child's standard error, in the format that the configuration asks for.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

from typing_extensions import override

from certplane.broker.issuing.messages import LogLine
from certplane.runtime.logging import JsonFormatter, LineHandler, TextFormatter, escape, request_id

_PLAIN: Final = (str, int, float, bool)
_LONGEST: Final = 64 * 1024
"""Characters of a message or an exception: a line is to be read by people."""


class LineSender(logging.Handler):
    """Gives records to `send`; from any thread."""

    def __init__(
        self, send: Callable[[LogLine], bool], beside: str, later: Callable[[Callable[[], None]], object]
    ) -> None:
        """Take where lines go.

        Args:
            send: Sends a line; False if that can't be. Called by the thread that makes this.
            beside: The format of lines on standard error, `text` or `json`.
            later: Has the thread that makes this call something.
        """
        super().__init__()
        self._send, self._later = send, later
        self._thread = threading.get_ident()
        self._beside = LineHandler(sys.stderr)
        self._beside.setFormatter(JsonFormatter() if beside == "json" else TextFormatter())

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _line(record)
        except Exception:  # noqa: BLE001 - as logging has it: a line that can't be made is told with its place
            self.handleError(record)
            return
        if threading.get_ident() == self._thread:
            self._pass(record, line)
            return
        try:
            self._later(lambda: self._pass(record, line))
        except RuntimeError:  # the loop has ended
            self._beside.handle(record)

    def _pass(self, record: logging.LogRecord, line: LogLine) -> None:
        if not self._send(line):
            self._beside.handle(record)


def _line(record: logging.LogRecord) -> LogLine:
    fields = getattr(record, "fields", None) or {}
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts += traceback.format_exception(*record.exc_info)
    if record.stack_info:
        parts.append(record.stack_info)
    return LogLine(
        logger=record.name,
        level=record.levelno,
        time=record.created,
        message=escape(record.getMessage()[:_LONGEST]),
        request_id=request_id.get(),
        fields={escape(str(key)): _plain(value) for key, value in fields.items()},
        exception="\n".join(escape(text) for text in "".join(parts)[:_LONGEST].splitlines()),
    )


def _plain(value: object) -> object:
    """What a message can hold and both formats show alike; they make text of anything else too."""
    if isinstance(value, str):
        return escape(value[:_LONGEST])
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return escape(str(value)[:_LONGEST])


def write_line(line: LogLine) -> None:
    """Write it to this process's log, if that is to have lines of this level."""
    logger = logging.getLogger(line.logger)
    if not logger.isEnabledFor(line.level):
        return
    # The formatters show `stack_info` as the exception: its traceback can't cross, its text can.
    values = {"fields": line.fields, "stack_info": line.exception or None}
    record = logging.makeLogRecord(
        {
            "name": line.logger,
            "levelno": line.level,
            "levelname": logging.getLevelName(line.level),
            "msg": line.message,
            "created": line.time,
            **values,
        }
    )
    token = request_id.set(line.request_id)
    try:
        logger.handle(record)
    finally:
        request_id.reset(token)
