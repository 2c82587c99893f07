"""A year of 2,000 hosts at Let's Encrypt: the ledger asks for nothing that the CA refuses, and wastes next to nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from certplane.broker.budget.published import limits_of
from certplane.pki.public_suffixes import registered_domain
from tests.support.limited_ca import LimitedCa, Play, Wish

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = limits_of("le", "https://acme-v02.api.letsencrypt.org/directory")


def year(rng: random.Random) -> Iterator[Wish]:
    """All come within two hours. 60 of them share names by tens, the others have a name each below 30 domains.

    They renew after two thirds of 90 days, one in five too late for the CA's window; on one day of the year the CA calls
    a third of all certificates back; each day some host is made anew, with a key of its own.
    """
    numbers = count()
    called_back = START + 150 * DAY
    for host in range(2000):
        names = (f"shared{host % 6}.test",) if host < 60 else (f"host{host}.domain{host % 30}.test",)
        issued = START + rng.random() * DAY / 12
        yield Wish(issued, f"{next(numbers):06d}", names)
        back = rng.random() < 1 / 3
        while (due := issued + 60 * DAY + rng.random() * 1.8 * DAY) < START + 365 * DAY:
            late = rng.random() < 0.2
            if back and issued < called_back <= due:
                due, late, back = called_back + rng.random() * DAY / 4, True, False
            yield Wish(due + late * 3 * DAY, f"{next(numbers):06d}", names, issued + 90 * DAY, in_window=not late)
            issued = due
    for day in range(365):
        host = rng.randrange(2000)
        names = (f"host{host}.domain{host % 30}.test",)
        yield Wish(START + day * DAY + rng.random() * DAY, f"{next(numbers):06d}", names)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_year_without_a_refusal(seed: int) -> None:
    """Never a 429, however long the CA takes to issue; at most a twentieth of what comes back while orders wait is idle."""
    rng = random.Random(seed)
    wishes = list(year(rng))
    ca = LimitedCa()

    def make(wish: Wish, now: datetime) -> datetime:
        takes = timedelta(seconds=rng.choice((5, 60, 890)))
        domains = tuple(sorted({registered_domain(name) for name in wish.dns_names}))
        ca.order(wish.dns_names, domains, now, takes, in_window=wish.in_window)
        return now + takes

    played = Play(LIMITS, make).run(wishes)
    assert len(played.made) == len(wishes) > 10_000
    assert played.idle <= 0.05, played.idle
    waits = [played.made[wish.order_id] - wish.time for wish in wishes]
    assert max(waits) > DAY, "nothing was waited for: it shows nothing"
