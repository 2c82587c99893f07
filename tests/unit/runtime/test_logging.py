"""One event, one line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certplane.runtime.logging import JsonFormatter, LineHandler, TextFormatter, request_id, setup

HOSTILE = "web1\r\n2026-11-23 ERROR forged \x1b[31mred\x9b31m \u2028next \u202eright \ud800 \x00end"


def record(
    message: str, *args: object, fields: dict[str, object] | None = None, error: Exception | None = None
) -> logging.LogRecord:
    made = logging.LogRecord("certplane.x", logging.INFO, __file__, 1, message, args, None)
    made.created = 1795435200.0429
    if fields is not None:
        made.fields = fields
    if error is not None:
        made.exc_info = (type(error), error, error.__traceback__)
    return made


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True


def test_text_line() -> None:
    """A text line is time, level, logger, message and fields, values quoted where needed."""
    line = TextFormatter().format(record("served %s", "it", fields={"code": "OK", "reason": "a b", "empty": ""}))
    assert line == '2026-11-23T12:00:00.042Z INFO certplane.x: served it code=OK reason="a b" empty=""'


def test_json_line() -> None:
    """A JSON line is an object with the fields beside the message, which they can't replace."""
    line = JsonFormatter().format(record("served", fields={"code": "OK", "message": "forged", "path": Path("/x")}))
    assert json.loads(line) == {
        "time": "2026-11-23T12:00:00.042Z",
        "level": "info",
        "logger": "certplane.x",
        "message": "served",
        "code": "OK",
        "path": "/x",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_line_stays_one_line(formatter: logging.Formatter) -> None:
    """Control characters in message, field or exception can neither break a line nor reach a terminal."""
    line = formatter.format(record("host %s", HOSTILE, fields={"agent": HOSTILE}, error=ValueError(HOSTILE)))
    assert all(character.isprintable() for character in line)
    assert "ValueError" in line


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_call_is_named(formatter: logging.Formatter) -> None:
    """Every line that is written while a call is served carries the call's id, once."""
    token = request_id.set("r-77")
    try:
        line = formatter.format(record("x", fields={"request_id": "other"}))
    finally:
        request_id.reset(token)
    assert line.count("r-77") == 1
    assert "other" not in line


def test_setup_writes_lines_and_tames_libraries(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set-up replaces the handlers, so that twice is once, and keeps chatty libraries quiet at any level."""
    setup("debug", "json", "stdout")
    setup("debug", "json", "stdout")
    logging.getLogger("certplane.test").debug("seen")
    logging.getLogger("acme.client").debug("payload")
    logging.getLogger("grpc._cython").info("noise")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["message"] for line in lines] == ["seen"]


def test_setup_knows_the_standard_streams(root_logger: logging.Logger) -> None:
    """`stdout` and `stderr` are the streams, not files of that name."""
    setup("info", "text", "stderr")
    (handler,) = root_logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


@pytest.mark.parametrize(
    ("level", "layout", "destination"), [("loud", "text", "stderr"), ("info", "xml", "stderr"), ("info", "text", "log")]
)
def test_setup_refuses_what_it_does_not_know(level: str, layout: str, destination: str) -> None:
    """A level, format or destination that doesn't exist is a mistake, not a default."""
    with pytest.raises(ValueError, match="unknown"):
        setup(level, layout, destination)


class Disk(io.StringIO):
    """A destination that is full for a while."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_destination_that_fails_is_told_of_once_it_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that can't be written are counted, nobody is disturbed, and the count comes first when lines can be again."""
    disk = Disk()
    handler = LineHandler(disk)
    handler.setFormatter(TextFormatter())
    log = logging.getLogger(f"{__name__}.destination")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    log.setLevel(logging.INFO)
    log.info("one")
    disk.full = True
    for number in range(3):
        log.info("lost %d", number)
    disk.full = False
    log.info("two")
    log.info("three")
    lines = [line.split(": ", 1)[1] for line in disk.getvalue().splitlines()]
    assert lines == ["one", "3 lines of the log could not be written before this one", "two", "three"]
    assert capsys.readouterr() == ("", "")


def test_a_closed_destination_disturbs_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that somebody has closed is a destination that fails."""
    disk = Disk()
    handler = LineHandler(disk)
    log = logging.getLogger(f"{__name__}.destination")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    log.setLevel(logging.INFO)
    disk.close()
    log.info("lost")
    assert handler.lost == 1
    assert capsys.readouterr() == ("", "")
