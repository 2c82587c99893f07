"""The child's log as a part of the broker's."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from certplane.broker.issuing import messages as m
from certplane.broker.issuing.log_lines import LineSender, write_line
from certplane.runtime.logging import JsonFormatter, request_id


class Collector(logging.Handler):
    """Lines as the broker's log has them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def child() -> logging.Logger:
    logger = logging.getLogger("test-issuing-child")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    return logger


@pytest.fixture
def broker() -> Iterator[Collector]:
    logger, collector = logging.getLogger("test-issuing-child.broker"), Collector()
    logger.propagate = False
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    yield collector
    logger.removeHandler(collector)


def across(line: m.LogLine) -> bool:
    """As it arrives, at the logger of the test's broker."""
    got = m.decode_to_broker(m.encode(line))
    assert isinstance(got, m.LogLine)
    write_line(m.msgspec.structs.replace(got, logger="test-issuing-child.broker"))
    return True


def sender(logger: logging.Logger, send: Callable[[m.LogLine], bool]) -> LineSender:
    handler = LineSender(send, "json", lambda call: call())
    logger.handlers[:] = [handler]
    return handler


def test_a_line_is_the_same_line(child: logging.Logger, broker: Collector) -> None:
    """Level, message, fields of every kind, and the id of the call or order that it belongs to."""
    sender(child, across)
    token = request_id.set("order-7")
    child.warning(
        "TXT record %s", "written", extra={"fields": {"zone": "a.test", "count": 3, "names": ["a"], "at": {1}}}
    )
    request_id.reset(token)
    (line,) = broker.lines
    assert line["level"] == "warning"
    assert line["message"] == "TXT record written"
    assert line["request_id"] == "order-7"
    assert (line["zone"], line["count"], line["names"], line["at"]) == ("a.test", 3, ["a"], "{1}")
    assert request_id.get() == ""


def fail(error: Exception) -> None:
    raise error


def test_an_exception_is_told_with_its_traceback(child: logging.Logger, broker: Collector) -> None:
    """Where it was raised, and by what."""
    sender(child, across)
    error = ValueError("half\x1b[31m a \ud800 surrogate")
    try:
        fail(error)
    except ValueError:
        child.exception("failed")
    text = str(broker.lines[0]["exception"])
    assert "test_log_lines.py" in text
    assert "ValueError: half\\x1b[31m a \\ud800 surrogate" in text


def test_a_level_that_the_broker_does_not_log_is_dropped(child: logging.Logger, broker: Collector) -> None:
    """The two may differ for the moment of a reload."""
    sender(child, across)
    child.debug("small")
    assert broker.lines == []


def test_what_can_not_be_passed_goes_to_standard_error(
    child: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the format of the configuration: nothing is lost because the broker is gone, or doesn't read."""
    sender(child, lambda _: False)
    child.error("no %s", "broker", extra={"fields": {"zone": "a.test"}})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["zone"]) == ("error", "no broker", "a.test")


def test_lines_of_threads_are_sent_by_the_loops_thread(child: logging.Logger, broker: Collector) -> None:
    """A connection belongs to one thread; a loop that has ended leaves standard error."""
    later: list[Callable[[], None]] = []
    child.handlers[:] = [LineSender(across, "json", later.append)]
    thread = threading.Thread(target=lambda: child.info("from a thread"))
    thread.start()
    thread.join()
    assert broker.lines == []
    (call,) = later
    call()
    assert [line["message"] for line in broker.lines] == ["from a thread"]
