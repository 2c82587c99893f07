"""`certplanectl watch` in a terminal of its own, against a broker whose answers are scripted."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certplane.v1 import rollout_pb2
from tests.support.in_terminal import in_terminal
from tests.support.operators_broker import OperatorsBroker
from tests.support.watched_fleet import snapshot, troubled_fleet
from tests.support.watched_rollouts import a_rollout, halted

pytestmark = pytest.mark.e2e

_ENTER, _LEAVE = "\x1b[?1049h", "\x1b[?1049l"
"""xterm's alternate screen."""


@asynccontextmanager
async def broker() -> AsyncIterator[OperatorsBroker]:
    """One whose watches tell the fleet and stay open until the broker stops."""
    async with OperatorsBroker({"WatchRenewals": [*snapshot(*troubled_fleet())]}).running() as running:
        yield running


async def test_a_full_screen_and_the_last_state_when_it_is_left(tmp_path: Path) -> None:
    """The terminal is as it was, the last state is on it, and status 0."""
    async with broker() as running, in_terminal(running.write_config(tmp_path), "watch") as shown:
        await shown.writes(_ENTER)
        await shown.writes("58 hosts, 56")  # the whole fleet: of a part of it nothing is left behind
        shown.press("q")
        await shown.ends(0)
    left = shown.text.rpartition(_LEAVE)[2]
    assert "HURT NOW 4" in left
    assert "DNS_UNAVAILABLE ns2" in left
    assert "58 hosts, 56 connected" in left


async def test_sigterm_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    """143, as for each command, without a traceback."""
    async with broker() as running, in_terminal(running.write_config(tmp_path), "watch") as shown:
        await shown.writes("app170")
        shown.process.send_signal(signal.SIGTERM)
        await shown.ends(143)
        assert _LEAVE in shown.text
    assert "Traceback" not in shown.text


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        pytest.param(["--plain"], {}, id="plain"),
        pytest.param([], {"NO_COLOR": "1"}, id="no-color"),
        pytest.param([], {"TERM": "dumb"}, id="dumb"),
    ],
)
async def test_lines_where_they_are_wanted(tmp_path: Path, arguments: list[str], environment: dict[str, str]) -> None:
    """A terminal that can't show a full screen, or a person who wants none, gets the table and then changes."""
    async with broker() as running:
        config = running.write_config(tmp_path)
        async with in_terminal(config, "watch", *arguments, **environment) as shown:
            await shown.writes("58 hosts; certificates: 2 EXPIRED")
            await shown.writes("watching again in")
            shown.process.send_signal(signal.SIGINT)
            await shown.ends(130)
    assert _ENTER not in shown.text


async def test_a_rollout_on_the_full_screen(tmp_path: Path) -> None:
    """Its page is open at first; what stays on the terminal is the rollout."""
    async with broker() as running:
        running.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=halted())
        running.answers["WatchRollout"] = [rollout_pb2.WatchRolloutResponse(rollout=halted())]
        config = running.write_config(tmp_path)
        async with in_terminal(config, "rollout", "watch", "r-7f3a") as shown:
            await shown.writes("web7.example.test")
            shown.press("q")
            await shown.ends(0)
    left = shown.text.rpartition(_LEAVE)[2]
    assert "halted: 1 host of ring canary failed" in left
    assert "reload: nginx: configuration test failed" in left


async def test_a_rollout_in_lines(tmp_path: Path) -> None:
    """A line for each change; where it halts, status 1 and what can be done."""
    async with broker() as running:
        running.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=a_rollout())
        running.answers["WatchRollout"] = [
            rollout_pb2.WatchRolloutResponse(rollout=each) for each in (a_rollout(), halted())
        ]
        config = running.write_config(tmp_path)
        async with in_terminal(config, "rollout", "watch", "r-7f3a", "--plain") as shown:
            await shown.ends(1)
    assert "ring canary: baking" in shown.text
    assert "r-7f3a halted: 1 host of ring canary failed" in shown.text
    assert "rollout resume r-7f3a --reason TEXT" in shown.text


async def test_a_host_that_isnt_there(tmp_path: Path) -> None:
    """An error on the terminal as it was."""
    async with broker() as running, in_terminal(running.write_config(tmp_path), "watch", "nosuch") as shown:
        await shown.ends(1)
    assert "there is no host nosuch in the fleet; compare with `certplanectl fleet`" in shown.text


async def test_a_broker_that_is_down_is_waited_for(tmp_path: Path) -> None:
    """It is said why, and q leaves."""
    stopped = OperatorsBroker()
    async with stopped.running():
        config = stopped.write_config(tmp_path)
    async with in_terminal(config, "watch") as shown:
        await shown.writes("check that the broker runs")
        shown.press("q")
        await shown.ends(0)
