"""How many orders a policy comes to, and how long those take at least."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.model import Profile
from certplane.broker.policy.changes import Change, PolicyChange, PolicyChanges, Subject
from certplane.broker.policy.effort import effort

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


def spent(*changes: PolicyChange, limit: int | None = None, first: str = LE) -> tuple[int, timedelta]:
    directories = {"acme": first, "other": OTHER, "inside": "https://inside/acme"}
    found = effort(of(*changes), granted, directories, {"inside"}, same_names_per_week=limit)
    return found.orders, found.duration


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        pytest.param([], {}, (0, timedelta()), id="nothing"),
        pytest.param(again("web", 5), {}, (5, timedelta()), id="a week's certificates"),
        pytest.param(again("web", 6), {}, (6, WEEK), id="one more"),
        pytest.param(again("web", 11), {}, (11, 2 * WEEK), id="the week after next"),
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
    """Let's Encrypt: 300 in three hours, of whatever names."""
    changes = [change for number in range(601) for change in again(f"p{number}")]
    assert spent(*changes) == (601, timedelta(hours=6))
