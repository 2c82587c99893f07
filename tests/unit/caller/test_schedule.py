"""When a keeper renews, and why."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.caller.schedule import MOST_RETRY, RETRY, Due, Held, RenewalCause, due, retry_wait
from certplane.caller.values import Certificate, CertificateNews

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
END = BEGIN + 90 * DAY
NOW = BEGIN + 30 * DAY


def held(*, renew: datetime | None = None, names: tuple[str, ...] = (), **news: Any) -> Held:
    certificate = Certificate("c1", "api", ("a.example",), "1f", "ca", "ab", BEGIN, END, renew_time=renew)
    return Held(certificate, CertificateNews("c1", "api", **news) if news else None, names, "ab")


@pytest.mark.parametrize(
    ("known", "now", "expected"),
    [
        pytest.param(held(renew=BEGIN + 60 * DAY), NOW, Due(BEGIN + 60 * DAY, RenewalCause.DUE), id="brokers-time"),
        pytest.param(
            held(renew=BEGIN + 60 * DAY, renew_time=NOW), NOW, Due(NOW, RenewalCause.DUE), id="a-time-that-has-moved"
        ),
        pytest.param(
            held(renew=BEGIN), BEGIN + DAY, Due(BEGIN + 9 * DAY, RenewalCause.DUE), id="not-in-the-first-tenth"
        ),
        pytest.param(
            held(renew_time=BEGIN, renewal_request_id="r"),
            BEGIN + DAY,
            Due(BEGIN, RenewalCause.REQUESTED),
            id="a-request-is-at-once",
        ),
        pytest.param(held(revoke_time=NOW), NOW, Due(NOW, RenewalCause.REVOKED), id="revoked"),
        pytest.param(held(renew=END), END, Due(END, RenewalCause.EXPIRED), id="expired"),
        pytest.param(
            held(renew=BEGIN + 60 * DAY, names=("a.example", "b.example")),
            NOW,
            Due(NOW, RenewalCause.NAMES_CHANGED),
            id="other-names",
        ),
        pytest.param(
            held(renew=BEGIN + 60 * DAY, names=("a.example",)),
            NOW,
            Due(BEGIN + 60 * DAY, RenewalCause.DUE),
            id="same-names",
        ),
    ],
)
def test_due(known: Held, now: datetime, expected: Due) -> None:
    """Each row: what is known, and when that makes it due."""
    assert due(known, now) == expected


@pytest.mark.parametrize("told", [None, END, END + DAY])
def test_the_own_rule(told: datetime | None) -> None:
    """Without a time of the broker's within the validity it is due when about a third of the lifetime is left."""
    found = due(held(renew=told), NOW)
    assert BEGIN + 55 * DAY <= found.time <= BEGIN + 60 * DAY


def test_the_wait_after_a_failure() -> None:
    """It grows to an hour by itself, is what the broker says where it says something, and a day at most."""
    rng = random.Random(1)
    assert all(RETRY.floor <= retry_wait(1, None, rng) <= timedelta(minutes=1) for _ in range(100))
    assert all(retry_wait(50, None, rng) <= timedelta(hours=1) for _ in range(100))
    assert timedelta(hours=5) <= retry_wait(1, timedelta(hours=5), rng) <= timedelta(hours=6)
    assert retry_wait(1, timedelta(days=900), rng) == MOST_RETRY
    assert retry_wait(1, timedelta(), rng) >= RETRY.floor
