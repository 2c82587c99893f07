"""How many orders a policy comes to, and how long those take at least."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.budget.published import limits_of
from certplane.broker.model import Profile
from certplane.broker.policy.changes import Change, PolicyChange, PolicyChanges, Subject
from certplane.broker.policy.effort import Granted, effort

LE = "https://acme-v02.api.letsencrypt.org/directory"
OTHER = "https://ca.example/directory"
WEEK = timedelta(weeks=1)


def of(*changes: PolicyChange) -> PolicyChanges:
    return PolicyChanges("a", "b", (), changes)


def again(profile: str, count: int = 1) -> list[PolicyChange]:
    return [PolicyChange(Change.ISSUED_AGAIN, Subject.CERTIFICATE, f"h{n}", profile) for n in range(count)]


def granted(_identity: str, name: str) -> Profile | None:
    if name == "gone":
        return None
    issuers = {"private": ("inside",), "other": ("other",)}.get(name, ())
    return Profile(name, "multi_san", (f"{name}.example",), "hash", issuers=issuers)


def other_names(_identity: str, name: str) -> Profile | None:
    return Profile(name, "multi_san", (f"{name}.before.example",), "hash")


def spent(
    *changes: PolicyChange, limit: int | None = None, first: str = LE, had: Granted = granted
) -> tuple[int, timedelta]:
    directories = {"acme": first, "other": OTHER, "inside": "https://inside/acme"}
    budgets = {name: limits_of(name, url) for name, url in directories.items()}
    found = effort(of(*changes), had, granted, budgets, {"inside"}, same_names_per_week=limit)
    return found.orders, found.duration


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        pytest.param([], {}, (0, timedelta()), id="nothing"),
        pytest.param(again("web", 5), {}, (5, timedelta()), id="a week's certificates"),
        pytest.param(again("web", 6), {}, (6, WEEK / 5), id="one more"),
        pytest.param(again("web", 11), {}, (11, 6 * WEEK / 5), id="in the week after"),
        pytest.param(again("web", 6), {"first": OTHER}, (6, timedelta()), id="a CA of which nothing is known"),
        pytest.param(again("web", 6), {"first": OTHER, "limit": 3}, (6, WEEK), id="the broker's own limit"),
        pytest.param(again("web", 6), {"first": OTHER, "limit": 0}, (6, timedelta()), id="no limit"),
        pytest.param(again("private", 9), {}, (0, timedelta()), id="a private CA"),
        pytest.param(again("gone"), {}, (0, timedelta()), id="a profile that isn't there"),
        pytest.param(
            [
                PolicyChange(Change.GAINED, Subject.GRANT, "h", "web"),
                PolicyChange(Change.LOST, Subject.GRANT, "h", "web"),
            ],
            {},
            (1, timedelta()),
            id="a new grant",
        ),
        pytest.param([PolicyChange(Change.GAINED, Subject.HOST, "h")], {}, (0, timedelta()), id="a host without any"),
    ],
)
def test_orders_and_their_time(
    changes: list[PolicyChange], options: dict[str, Any], expected: tuple[int, timedelta]
) -> None:
    """Those at public CAs alone; by the limits that are known."""
    assert spent(*changes, **options) == expected


def test_new_orders_of_an_account() -> None:
    """Let's Encrypt: 300 in three hours, of whatever names; those that had a certificate before don't count there."""
    changes = [change for number in range(601) for change in again(f"p{number}")]
    assert spent(*changes) == (601, timedelta())
    assert spent(*changes, had=other_names) == (601, 301 * timedelta(hours=3) / 300)


def test_certificates_of_a_domain() -> None:
    """Let's Encrypt: 50 in a week below one registered domain, whose ever the names are."""
    changes = [PolicyChange(Change.GAINED, Subject.GRANT, "h", f"a{number}.shop") for number in range(60)]
    assert spent(*changes) == (60, 10 * WEEK / 50)
