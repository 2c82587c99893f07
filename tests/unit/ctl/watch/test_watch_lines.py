"""A watch in lines: for programs, and for people without a full screen."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest

from certplane.ctl.commands.watch import full_screen
from certplane.ctl.watch.lines import JsonLines, PlainLines, change_line
from certplane.runtime.terminal import Terminal
from certplane.v1 import renewal_pb2
from tests.support.watched_fleet import NOW, Message, certificate, host, snapshot, troubled_fleet

Status = renewal_pb2.CertificateStatus


def changed(status: renewal_pb2.CertificateStatus, *, removed: bool = False) -> Message:
    return Message(certificate_change=Message.CertificateChange(host="a", certificate=status, removed=removed))


def failed(health: int = renewal_pb2.HEALTH_UNSPECIFIED) -> renewal_pb2.CertificateStatus:
    status = certificate("web", health, state=Status.STATE_FAILED)
    status.failed_step, status.last_error = Status.STEP_RELOAD, "exit status 1"
    return status


def test_changes_as_lines() -> None:
    """A change is one line for a person; the end of a snapshot is none."""
    assert change_line(changed(failed()), NOW) == "a: web: failed (reload): exit status 1"
    assert change_line(changed(failed(renewal_pb2.HEALTH_EXPIRED)), NOW) == (
        "a: web: EXPIRED, failed (reload): exit status 1"
    )
    assert change_line(changed(certificate("web")), NOW) == "a: web: serving"
    assert change_line(renewal_pb2.WatchRenewalsResponse(host_removed="a"), NOW) == "a: forgotten"
    assert change_line(changed(failed(), removed=True), NOW) == "a: web: removed"
    ill = host("a", certificate("mail"), certificate("web", renewal_pb2.HEALTH_EXPIRED))
    assert change_line(Message(host=ill), NOW) == "a: up 5m, web EXPIRED"
    elsewhere = host("a")
    elsewhere.broker_name = "machine-2"
    assert change_line(Message(host=elsewhere), NOW) == "a: up 5m at machine-2"
    gone = host("a", certificate(), connected=False)
    gone.health = renewal_pb2.HEALTH_UNHEARD
    gone.disconnect_time.FromDatetime(NOW - timedelta(seconds=21))
    assert change_line(Message(host=gone), NOW) == "a: down 21s, UNHEARD"
    assert change_line(Message(snapshot_end=Message.SnapshotEnd()), NOW) == ""


def test_piped_each_message_is_a_line() -> None:
    """And what is about the watch itself goes elsewhere."""
    stream, said = io.StringIO(), []
    display = JsonLines(stream, said.append)
    for message in snapshot(host("a")):
        display.show(message)
    display.interrupted("the broker has gone", timedelta(seconds=3))
    assert [next(iter(json.loads(line))) for line in stream.getvalue().splitlines()] == ["host", "snapshotEnd"]
    assert said == ["the broker has gone; watching again in 3 s"]


def test_the_table_comes_once_and_then_changes() -> None:
    """The worst first, totals behind; after an interruption the table again."""
    stream, said = io.StringIO(), []
    display = PlainLines(stream, said.append, lambda: NOW, Terminal(width=80))
    for message in [*snapshot(*troubled_fleet()), changed(failed())]:
        display.show(message)
    lines = stream.getvalue().splitlines()
    assert lines[0].split()[:2] == ["HEALTH", "HOST"]
    assert lines[1].split()[:2] == ["EXPIRED", "app170"]
    assert lines[-2].startswith(f"{len(troubled_fleet())} hosts; certificates: 2 EXPIRED, 1 REVOKED_IN_USE")
    assert lines[-1] == "a: web: failed (reload): exit status 1"
    assert max(map(len, lines[:-2])) <= 80
    display.interrupted("the broker has gone", timedelta(seconds=3))
    for message in snapshot(host("a"), host("[b]")):
        display.show(message)
    after = stream.getvalue().splitlines()[len(lines) :]
    assert [line.split()[:2] for line in after] == [["HEALTH", "HOST"], ["-", "[b]"], ["-", "a"], ["2", "hosts;"]]


def test_colours_are_there_where_the_terminal_has_some() -> None:
    """They repeat the word."""
    stream = io.StringIO()
    display = PlainLines(stream, str, lambda: NOW, Terminal(width=80, colour=True))
    for message in snapshot(host("a", certificate("web", renewal_pb2.HEALTH_EXPIRED))):
        display.show(message)
    assert "\x1b[1;31mEXPIRED" in stream.getvalue()


class Tty(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        pytest.param({"TERM": "xterm-256color"}, True, id="a-terminal"),
        pytest.param({"TERM": "xterm", "NO_COLOR": ""}, True, id="empty-no-color"),
        pytest.param({"TERM": "xterm", "NO_COLOR": "1"}, False, id="no-color"),
        pytest.param({"TERM": "dumb"}, False, id="dumb"),
        pytest.param({}, False, id="no-term"),
    ],
)
def test_when_there_is_a_full_screen(environment: dict[str, str], shown: bool) -> None:
    """On a terminal that can show one, unless something says that lines are wanted."""
    assert full_screen(Tty(), Tty(), environment) is shown
    assert not full_screen(io.StringIO(), Tty(), environment)
    assert not full_screen(Tty(), io.StringIO(), environment)
