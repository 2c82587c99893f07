"""One call of WatchMyCertificates as a protocol."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.watches.model import CertificateNews, Goodbye, Heartbeat, InForce, Listening, Told
from certplane.broker.watches.session import WatchSession

MINUTE = timedelta(minutes=1)
T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
IN_FORCE = InForce("p0", "e0")
ONE, OTHER = (
    CertificateNews(f"c-{n}", "web", (), "3e7", f"{n}" * 64, T0, T0 + 90 * MINUTE, T0 + 60 * MINUTE) for n in (1, 2)
)
GOODBYE = Goodbye(MINUTE, "the broker is shutting down")


def said(session: WatchSession, in_force: InForce = IN_FORCE) -> list[Told]:
    """All that there is to say now."""
    found = []
    while (message := session.next_message(T0, MINUTE, in_force)) is not None:
        found.append(message)
    return found


@pytest.fixture
def session() -> WatchSession:
    """One that has heard of one certificate."""
    made = WatchSession()
    made.know((ONE,))
    said(made)
    return made


def test_what_there_is_comes_before_listening() -> None:
    """Nothing is said before the certificates are known; then all of them, and that the watcher has heard all."""
    session = WatchSession()
    assert said(session) == []
    session.know((ONE, OTHER))
    assert said(session) == [ONE, OTHER, Listening(T0, MINUTE, IN_FORCE)]
    assert said(session) == []


def test_who_has_nothing_listens_too() -> None:
    """A service without a certificate hears at once that it listens."""
    session = WatchSession()
    session.know(())
    assert said(session) == [Listening(T0, MINUTE, IN_FORCE)]


def test_what_has_changed_is_told_alone(session: WatchSession) -> None:
    """Of two certificates the one that is another, or new; read again unchanged, nothing."""
    session.know((ONE, OTHER))
    assert said(session) == [OTHER]
    session.know((ONE, replace(OTHER, renew_reason="drill")))
    assert said(session) == [replace(OTHER, renew_reason="drill")]
    session.know((ONE, replace(OTHER, renew_reason="drill")))
    assert said(session) == []


def test_a_slow_reader_gets_the_latest(session: WatchSession) -> None:
    """Ten thousand changes that were not read are one message, and none if all is as it was told."""
    for number in range(10_000):
        session.know((replace(ONE, renew_reason=f"drill {number}"),))
    assert said(session) == [replace(ONE, renew_reason="drill 9999")]
    session.know((OTHER, replace(ONE, renew_reason="once more")))
    session.know((replace(ONE, renew_reason="drill 9999"),))
    assert said(session) == []


def test_one_that_comes_back_is_told_again(session: WatchSession) -> None:
    """Of what is gone nothing is kept: a plan that was made, lost in a restored database, and made again is told twice."""
    session.know(())
    assert said(session) == []
    session.know((ONE,))
    assert said(session) == [ONE]


def test_another_policy_or_epoch_is_told_once(session: WatchSession) -> None:
    """After listening only: who hasn't heard what it has hears it with that."""
    changed = InForce("p1", "e0")
    assert said(session, changed) == [changed]
    assert said(session, changed) == []
    assert said(WatchSession(), changed) == []


def test_a_heartbeat_is_said_when_nothing_else_is(session: WatchSession) -> None:
    """Several that weren't read are one; of news it comes last."""
    session.heartbeat()
    session.heartbeat()
    session.know((ONE, OTHER))
    assert said(session) == [OTHER, Heartbeat(T0)]


def test_goodbye_is_the_last_word(session: WatchSession) -> None:
    """What is left is said before it, and nothing after it; the first goodbye stands."""
    session.know((ONE, OTHER))
    session.say_goodbye(GOODBYE)
    session.say_goodbye(Goodbye(2 * MINUTE, "it has lasted"))
    session.heartbeat()
    assert said(session) == [OTHER, GOODBYE]
    session.know((replace(ONE, renew_reason="drill"),))
    assert said(session) == []
    assert session.said_goodbye


def test_goodbye_needs_no_certificates() -> None:
    """A store that is away keeps nobody here."""
    session = WatchSession()
    session.say_goodbye(GOODBYE)
    assert said(session) == [GOODBYE]
