"""How far an incident is, of each certificate and of all."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.incidents.model import Figures, Member
from certplane.broker.incidents.progress import MOST_HOSTS, MemberProgress, Sums, member_progress
from certplane.broker.model import IdentityKind

NOW = datetime(2026, 3, 19, 15, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = ("b.example", "a.example")
OLD = Member(
    "old",
    "web1",
    NOW,
    NOW - DAY,
    in_force=True,
    not_after=NOW + 30 * DAY,
    serial_number="0a",
    profile="web",
    dns_names=NAMES,
)
ISSUED = replace(OLD, in_force=False, new_certificate_id="new")
WITHDRAWN = replace(OLD, forward=False)
REVOKED = replace(OLD, in_force=False, revoke_time=NOW)
EXPIRED = replace(OLD, in_force=False, not_after=NOW)


def host(*certificates: IndexedCertificate, **more: Any) -> IndexedHost:
    identity = IndexedCertificate("identity", serial_number="1f")
    return IndexedHost("web1", "web1", certificates=(identity, *certificates), **more)


def held(serial: str = "0a", which: str = "old", **more: Any) -> IndexedCertificate:
    values = {"profile": "web", "dns_names": NAMES, "certificate_id": which, "serial_number": serial, **more}
    return IndexedCertificate("web", **values)


USES_OLD = host(held(issued_serial_number="0a", served_serial_number="0a"))
HAS_NEW = host(held(issued_serial_number="0b"))
USES_NEW = host(held("0b", "new", issued_serial_number="0b", served_serial_number="0b"))
SERVES_OLD = host(held("0b", "new", issued_serial_number="0b", served_serial_number="0a"))
USES_FOREIGN = host(held("ff", "", dns_names=NAMES[::-1]))
FAILS = host(held(issued_serial_number="0a", failing=True))
GONE = host(IndexedCertificate("other", "mail", serial_number="33", certificate_id="else"))
SERVICE = IndexedHost("web1", kind=IdentityKind.SERVICE)
MUTE = IndexedHost("web1", "web1")

WAITS = MemberProgress()
DONE = MemberProgress(replaced=True, in_use=True, over=True)
CASES: dict[str, tuple[Member, IndexedHost | None, MemberProgress]] = {
    "waits": (OLD, USES_OLD, WAITS),
    "fails": (OLD, FAILS, MemberProgress(failing=True)),
    "issued, its host doesn't have it": (ISSUED, USES_OLD, WAITS),
    "on disk": (ISSUED, HAS_NEW, MemberProgress(replaced=True)),
    "in use": (ISSUED, USES_NEW, DONE),
    "installed, while the old one is served": (ISSUED, SERVES_OLD, MemberProgress(replaced=True)),
    "replaced by an order that didn't say so": (OLD, USES_NEW, DONE),
    "replaced by what isn't the broker's": (OLD, USES_FOREIGN, DONE),
    "revoked, nothing done": (REVOKED, USES_OLD, MemberProgress(hurt=True)),
    "revoked, and a successor on disk alone": (
        replace(REVOKED, new_certificate_id="new"),
        HAS_NEW,
        MemberProgress(replaced=True, hurt=True),
    ),
    "revoked, and replaced": (replace(REVOKED, new_certificate_id="new"), USES_NEW, DONE),
    "expired, nothing done": (EXPIRED, USES_OLD, MemberProgress(hurt=True, over=True)),
    "no longer kept": (replace(EXPIRED, not_after=None), USES_OLD, MemberProgress(hurt=True, over=True)),
    "withdrawn": (WITHDRAWN, USES_OLD, MemberProgress(withdrawn=True, over=True)),
    "withdrawn after it was replaced": (replace(ISSUED, forward=False), USES_NEW, DONE),
    "withdrawn and revoked": (replace(REVOKED, forward=False), USES_OLD, MemberProgress(hurt=True)),
    "its host no longer has it": (OLD, GONE, MemberProgress(gone=True, over=True)),
    "its host no longer has it, and it was revoked": (REVOKED, GONE, MemberProgress(gone=True, over=True)),
    "its host is gone": (OLD, None, MemberProgress(gone=True, over=True)),
    "a service that has not asked": (OLD, SERVICE, WAITS),
    "a service that has": (ISSUED, SERVICE, DONE),
    "a host that reports nothing": (OLD, MUTE, WAITS),
    "a host that reports nothing and has asked": (ISSUED, MUTE, DONE),
}


@pytest.mark.parametrize(("member", "holder", "progress"), CASES.values(), ids=CASES)
def test_how_far_one_is(member: Member, holder: IndexedHost | None, progress: MemberProgress) -> None:
    """By what its host says, before what was issued."""
    assert member_progress(member, holder, NOW) == progress


def test_what_all_are() -> None:
    """Counts, holders once, and those first that are hurt, then those that fail; none of whom nothing is to come."""
    sums = Sums(NOW)
    for number, (member, progress) in enumerate(
        [
            (OLD, WAITS),
            (OLD, MemberProgress(failing=True)),
            (OLD, MemberProgress(hurt=True)),
            (OLD, MemberProgress(hurt=True, over=True)),
            (OLD, MemberProgress(replaced=True)),
            (OLD, DONE),
            (OLD, MemberProgress(withdrawn=True, over=True)),
            (OLD, MemberProgress(gone=True, over=True)),
        ]
    ):
        sums.add(replace(member, host=f"web{number}"), progress)
    sums.add(replace(OLD, host="web0"), MemberProgress(failing=True))
    assert sums.figures() == Figures(9, 8, 2, 1, 2, 2, 1, 1, 5, ("web2", "web3", "web0", "web1", "web4"))


def test_some_hosts_are_named() -> None:
    """Not a thousand."""
    sums = Sums(NOW)
    for number in range(50):
        sums.add(replace(OLD, host=f"web{number:02}"), WAITS)
    assert sums.figures().hosts == tuple(f"web{number:02}" for number in range(MOST_HOSTS))


def test_the_deadline_is_of_what_is_left() -> None:
    """The soonest end of a window to come, else of a validity; what is over doesn't count."""
    sums = Sums(NOW)
    assert sums.deadline is None
    sums.add(replace(OLD, not_after=NOW + DAY), DONE)
    assert sums.deadline is None
    sums.add(OLD, WAITS)
    sums.add(replace(OLD, not_after=NOW + 20 * DAY), WAITS)
    assert sums.deadline == NOW + 20 * DAY
    sums.add(replace(OLD, window_end=NOW + 5 * DAY), WAITS)
    sums.add(replace(OLD, window_end=NOW + 3 * DAY), WAITS)
    assert sums.deadline == NOW + 3 * DAY


def test_an_incident_without_certificates_is_nothing() -> None:
    """All of its certificates may have been forgotten."""
    assert Sums(NOW).figures() == Figures()


def test_what_hosts_hold_has_its_deadline_still() -> None:
    """A rollout has all of them ordered within minutes, and the last ring uses them hours later."""
    sums = Sums(NOW)
    sums.add(replace(OLD, window_end=NOW + 3 * DAY), MemberProgress(replaced=True))
    assert sums.deadline == NOW + 3 * DAY
