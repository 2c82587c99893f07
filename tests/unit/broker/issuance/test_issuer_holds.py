"""What the issuers are not to be asked for: by what the CA said, for how long, and for whom."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.queue import Lane
from certplane.broker.model import Scope, ScopeKind
from certplane.errors import Reason, Refusal
from tests.fakes.clock import ManualClock

LANE = Lane("ca", "", ("shop.test",))


def test_a_hold_ends_by_itself() -> None:
    """Until its time the lane is held with what the CA said; other lanes aren't."""
    holds, now = IssuerHolds(), ManualClock().now()
    refusal = Refusal(Reason.ISSUER_RATE_LIMITED, "later")
    names = [Scope(ScopeKind.NAME_SET)]
    assert holds.hold(LANE, names, now + timedelta(hours=1), refusal)

    assert holds.held(LANE, now) == (now + timedelta(hours=1), refusal)
    assert holds.held(LANE._replace(issuer="other"), now) is None
    assert not holds.hold(LANE, names, now + timedelta(minutes=59), refusal)
    assert holds.held(LANE, now + timedelta(minutes=59)) is not None
    assert holds.held(LANE, now + timedelta(hours=1)) is None
    assert not holds._holds


@pytest.mark.parametrize(
    ("scope", "held"),
    [
        pytest.param("name_set", {"set"}, id="the very set"),
        pytest.param("name:www.shop.test", {"set", "one", "wild"}, id="a name, wildcard included"),
        pytest.param("domain:shop.test", {"set", "one", "wild", "apex", "below"}, id="a registered domain"),
        pytest.param("account", {"set", "one", "wild", "apex", "below", "near", "other"}, id="the account"),
    ],
)
def test_a_blocked_scope_blocks_only_itself(scope: str, held: set[str]) -> None:
    """Whoever asks for something under the scope waits, whoever doesn't may ask."""
    sets = {
        "set": ("shop.test", "www.shop.test"),
        "one": ("www.shop.test",),
        "wild": ("*.www.shop.test",),
        "apex": ("shop.test",),
        "below": ("a.b.shop.test", "other.test"),
        "near": ("workshop.test",),
        "other": ("other.test",),
    }
    holds, now = IssuerHolds(), ManualClock().now()
    lanes = {name: Lane("ca", "", names) for name, names in sets.items()}
    parsed = Scope.parse(scope)
    assert parsed is not None
    assert str(parsed) == scope
    holds.hold(lanes["set"], [parsed], now + timedelta(hours=1), Refusal(Reason.ISSUER_RATE_LIMITED, "later"))

    assert {name for name, lane in lanes.items() if holds.held(lane, now)} == held
    assert not any(holds.held(lane._replace(issuer="another"), now) for lane in lanes.values())


def test_a_hold_of_a_clock_that_was_set_back_is_none() -> None:
    """It was for an hour, and not for a year and an hour."""
    holds = IssuerHolds()
    now = ManualClock().now()
    limited = Refusal(Reason.ISSUER_RATE_LIMITED, "later", retry_after=timedelta(hours=1))
    holds.hold(LANE, [Scope(ScopeKind.ACCOUNT)], now + timedelta(days=365, hours=1), limited)
    assert holds.held(LANE, now + timedelta(days=365)) is not None
    assert holds.held(LANE, now) is None


def test_the_longest_of_several_holds_counts() -> None:
    """An order that falls under two limits waits for the later end, and is told that one's words."""
    holds, now = IssuerHolds(), ManualClock().now()
    short, long = Refusal(Reason.ISSUER_RATE_LIMITED, "short"), Refusal(Reason.ISSUER_RATE_LIMITED, "long")
    holds.hold(LANE, [Scope(ScopeKind.ACCOUNT)], now + timedelta(minutes=1), short)
    holds.hold(LANE, [Scope(ScopeKind.NAME, "shop.test")], now + timedelta(hours=1), long)

    assert holds.held(LANE, now) == (now + timedelta(hours=1), long)
    assert holds.held(LANE._replace(dns_names=("other.test",)), now) == (now + timedelta(minutes=1), short)


@pytest.mark.parametrize("text", ["", "issuer", "domain", "domain:", "name_set:a", "account:x", "frequency:a"])
def test_other_words_are_no_scope(text: str) -> None:
    """What another version or another limit wrote as its subject is not taken for a scope."""
    assert Scope.parse(text) is None
