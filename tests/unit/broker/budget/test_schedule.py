"""When orders would go, against orders that go one after the other, and for many."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.budget.claims import claim_of, urgency_of
from certplane.broker.budget.model import Exemption, IssuerLimits, Limit, LimitScope, Waiter
from certplane.broker.budget.schedule import HORIZON, Pending, Turn, pending_of, schedule
from tests.support.limited_ca import Play, Wish

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CA = IssuerLimits(
    "ca",
    "https://ca.test/directory",
    "configuration",
    (
        Limit("orders", LimitScope.ACCOUNT, 4, HOUR),
        Limit("domain", LimitScope.REGISTERED_DOMAIN, 3, 5 * HOUR),
        Limit("names", LimitScope.NAMES, 2, 9 * HOUR, frozenset({Exemption.ARI})),
    ),
)


def pending(wish: Wish, limits: IssuerLimits = CA) -> Pending:
    urgency = urgency_of(wish.order_id, wish.ends, wish.time)
    return Pending(urgency, claim_of(limits, wish.dns_names, urgency=urgency, ari=wish.in_window).needs)


@pytest.mark.parametrize("seed", range(20))
def test_it_comes_as_forecast(seed: int) -> None:
    """Orders that are asked for at once, through the ledger one by one, are made at exactly these times.

    Where two lines have a place at the same time, two orders may change places.
    """
    rng = random.Random(seed)
    wishes = [
        Wish(
            NOW,
            f"{number:03d}",
            (f"h{rng.randrange(6)}.d{rng.randrange(4)}.test",),
            NOW + rng.randrange(90) * timedelta(days=1) if rng.random() < 0.7 else None,
            in_window=rng.random() < 0.1,
        )
        for number in range(rng.randrange(1, 40))
    ]
    # In order of urgency, as those would be asked that wait already.
    wishes.sort(key=lambda wish: urgency_of(wish.order_id, wish.ends, wish.time))
    played = Play(CA, lambda _, now: now + timedelta(days=900)).run(wishes)
    turns = schedule({}, map(pending, wishes), NOW)
    assert [turn.time for turn in turns] == sorted(played.made.values())
    same = sum(played.made[turn.order_id] == turn.time for turn in turns)
    assert same >= 0.8 * len(turns)


def test_what_never_fits_is_said() -> None:
    """With the limit that it waits for; who isn't held up goes at once."""
    limits = IssuerLimits("ca", CA.directory_url, "", (Limit("names", LimitScope.NAMES, 1, timedelta(days=60)),))
    wishes = [Wish(NOW, f"{number}", ("a.test",)) for number in range(4)]
    turns = schedule({}, [*(pending(wish, limits) for wish in wishes), Pending(urgency_of("x", None, NOW), ())], NOW)
    assert [(turn.order_id, turn.time is None) for turn in turns] == [
        ("0", False),
        ("x", False),
        ("1", False),
        ("2", True),
        ("3", True),
    ]
    assert {turn.limit for turn in turns[2:]} == {limits.limits[0]}
    assert all(turn.time is None or turn.time <= NOW + HORIZON for turn in turns)


def test_who_waits_already_is_part_of_it() -> None:
    """As the ledger has them; a limit that is no longer there holds up nobody."""
    key = claim_of(CA, ("a.test",), urgency=urgency_of("w", None, NOW)).needs[0].key
    waiter = Waiter("w", "ca", (key, key._replace(limit="gone")), urgency_of("w", NOW, NOW), NOW)
    assert [need.limit for need in pending_of(waiter, [CA]).needs] == [CA.limits[0]]
    assert schedule({}, [pending_of(waiter, [CA])], NOW) == [Turn("w", NOW)]
