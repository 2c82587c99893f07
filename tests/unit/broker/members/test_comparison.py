"""In what brokers differ that should be alike."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.members.comparison import Subject, compare
from certplane.broker.members.model import AccountKey, Member


def member(number: int, **facts: Any) -> Member:
    alike = Member(
        broker_id=f"id-{number}",
        name=f"machine{number}",
        address="[::]:8443",
        version="1.0",
        start_time=datetime(2026, 1, number, tzinfo=UTC),
        policy_hash="policy-a",
        trust_hash="trust-a",
        configuration_hash="configuration-a",
        audit_mode="fail_open",
        account_keys=(AccountKey("default", "account-a"),),
    )
    return replace(alike, **facts)


def test_what_is_alike_differs_in_nothing() -> None:
    """A broker by itself neither; who has more hosts, or another machine, is no difference."""
    assert compare([member(1)]) == []
    assert compare([member(1), member(2, stream_count=7, clock_skew=timedelta(seconds=2))]) == []


@pytest.mark.parametrize(
    ("facts", "subject", "said"),
    [
        ({"policy_hash": "policy-b"}, Subject.POLICY, "policies differ"),
        ({"trust_hash": "trust-b"}, Subject.TRUST, "CAs of the identities differ"),
        ({"configuration_hash": "other"}, Subject.CONFIGURATION, "configurations differ"),
        ({"audit_mode": "off"}, Subject.AUDIT_MODE, "audit modes differ"),
        ({"version": "1.1"}, Subject.VERSION, "versions differ"),
        (
            {"account_keys": (AccountKey("default", "account-b"),)},
            Subject.ACCOUNT,
            "ACME accounts of the issuer default differ",
        ),
        ({"clock_skew": timedelta(hours=-1)}, Subject.CLOCK, "the clock of machine3 [::]:8443 is 1h 0m behind"),
    ],
    ids=lambda value: str(value) if isinstance(value, Subject) else "",
)
def test_the_one_that_differs_is_named(facts: dict[str, Any], subject: Subject, said: str) -> None:
    """It alone, where most others are alike; with what to do."""
    (difference,) = compare([member(1), member(2), member(3, **facts)])
    assert (difference.subject, difference.broker_ids) == (subject, ("id-3",))
    assert difference.text.startswith(said)
    assert difference.remedy


def test_without_a_majority_all_are_named() -> None:
    """Nobody can say which of two is the right one."""
    (difference,) = compare([member(1), member(2, policy_hash="policy-b")])
    assert difference.broker_ids == ("id-1", "id-2")
    assert difference.text == ("policies differ: policy-a at machine1 [::]:8443; policy-b at machine2 [::]:8443")


def test_what_an_older_release_doesn_t_say_is_no_difference() -> None:
    """Nor is an issuer that only one of them has: their configurations differ, which is said."""
    assert compare([member(1), member(2, audit_mode="", account_keys=())]) == []
    keys = (AccountKey("default", "account-a"), AccountKey("second", "b"))
    assert compare([member(1), member(2, account_keys=keys)]) == []


def test_two_of_one_name_and_address() -> None:
    """Nobody can tell them apart; unless they share the port on purpose."""
    twins = [member(1), member(2, name="machine1")]
    (difference,) = compare([*twins, member(3)])
    assert (difference.subject, difference.broker_ids) == (Subject.ADDRESS, ("id-1", "id-2"))
    assert difference.text == "2 brokers are called machine1 [::]:8443"
    assert compare([replace(each, reuse_port=True) for each in twins]) == []


def test_who_has_lost_its_lease() -> None:
    """It answers calls that read, so it is there, and says that it issues nothing."""
    (difference,) = compare([member(1), member(2)], {"id-2"})
    assert (difference.subject, difference.broker_ids) == (Subject.LEASE, ("id-2",))


def test_many_brokers_are_a_short_text() -> None:
    """Some are named, and how many more there are."""
    (difference,) = compare([member(n % 28 + 1, policy_hash="b" if n else "a") for n in range(28)])
    assert "17 more" in difference.text
    assert len(difference.text) < 1000
