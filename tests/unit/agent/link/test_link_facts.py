"""What a host says of itself: how its agent runs, and by which roots it knows its broker."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.agent.link.facts import host_facts, note_run, run_interval
from certplane.agent.link.state import LinkState
from certplane.fleet_report.model import AgentMode
from tests.support.ca import PrivateCa

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)

INTERVALS: dict[str, tuple[tuple[float, ...], float | None]] = {
    "never": ((), None),
    "once": ((0,), None),
    "twice": ((0, 1), 1),
    "each hour": ((0, 1, 2, 3), 1),
    "each hour, and once by a person": ((0, 1, 1.5, 2), 0.5),
    "each day, and once by a person": ((0, 24, 31, 48), 17),
    "each hour, and a day without power": ((0, 1, 2, 26), 1),
    "for the first time after a year": ((0, 9000), 9000),
    "for the first time after a century": ((0, 900_000), 9600),
}


@pytest.mark.parametrize(("hours", "interval"), INTERVALS.values(), ids=INTERVALS)
def test_how_often_a_timer_starts_it(hours: tuple[float, ...], interval: float | None) -> None:
    """The middle one of the last spans, so that one that is out of the ordinary decides nothing for long."""
    found = run_interval([NOW + hour * HOUR for hour in hours])
    assert found == (None if interval is None else interval * HOUR)


def test_the_last_runs_are_kept() -> None:
    """Four of a timer; a command beside them is none, and a daemon has none. A clock that was set back loses later ones."""
    state = LinkState()
    for number in range(6):
        state = note_run(state, AgentMode.TIMER, NOW + number * HOUR)
    assert state.run_times == tuple(NOW + number * HOUR for number in (2, 3, 4, 5))
    assert note_run(state, None, NOW + 6 * HOUR) == state
    assert note_run(state, AgentMode.TIMER, NOW + 3 * HOUR).run_times == (NOW + 2 * HOUR, NOW + 3 * HOUR)
    daemon = note_run(state, AgentMode.DAEMON, NOW)
    assert (daemon.agent_mode, daemon.run_times) == (AgentMode.DAEMON, ())


def test_the_roots_are_those_of_the_file(tmp_path: Path) -> None:
    """Each once, by its SHA-256; none of a file that can't be read at that moment."""
    cas = [PrivateCa("one"), PrivateCa("two")]
    path = tmp_path / "broker-ca.pem"
    state = LinkState(agent_mode=AgentMode.TIMER, run_times=(NOW, NOW + HOUR))
    assert host_facts(state, path).broker_roots_sha256 == ()
    path.write_bytes(b"".join(ca.root_pem for ca in (*cas, cas[0])))
    found = [hashlib.sha256(x509.load_pem_x509_certificate(ca.root_pem).public_bytes(Encoding.DER)) for ca in cas]
    facts = host_facts(state, path)
    assert facts.broker_roots_sha256 == tuple(each.hexdigest() for each in found)
    assert (facts.agent_mode, facts.run_interval, facts.features) == (AgentMode.TIMER, HOUR, ("identity", "rollout"))
