"""What a broker does beside its calls: DNS credentials that were mended at the provider are noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from certplane.broker.background import CheckingSolver, watch_dns_accounts
from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.model import Profile
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle

BROKEN = AccountFinding("the token was revoked", "store a valid secret", fatal=True)
UNKNOWN = AccountFinding("it can't be told now", "none, if it passes")


class Solver(CheckingSolver):
    """Finds what it is told to."""

    def __init__(self) -> None:
        self.found: list[AccountFinding] = []
        self.asked: list[list[str]] = []

    async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> Sequence[AccountFinding]:
        self.asked.append([profile.name for profile in profiles])
        return list(self.found)


def policy_of(profiles: list[Profile]) -> Any:
    """A policy whose names are all written, so that each profile is issued as it stands."""
    of = {profile.name: [profile] for profile in profiles}
    current = SimpleNamespace(profiles=profiles, issued_profiles=profiles, issued=of.__getitem__)
    return SimpleNamespace(current=current)


@pytest.mark.parametrize(
    ("found", "moves"),
    [
        pytest.param([[BROKEN], []], 1, id="mended"),
        pytest.param([[BROKEN], [BROKEN], [BROKEN]], 0, id="still broken"),
        pytest.param([[BROKEN], [UNKNOWN], []], 1, id="out of reach in between"),
        pytest.param([[UNKNOWN], [], []], 0, id="was only out of reach"),
        pytest.param([[], [], []], 0, id="blocked for another reason"),
        pytest.param([[BROKEN], [], [], [BROKEN], []], 2, id="twice"),
    ],
)
async def test_credentials_that_are_mended_have_who_waits_ask_again(
    found: list[list[AccountFinding]], moves: int
) -> None:
    """Once for each time that they can be used again; what can't be told says nothing."""
    clock, solver, told = ManualClock(), Solver(), list[str]()
    profiles = [Profile(name, "multi_san", (f"{name}.test",), "hash") for name in ("a", "b")]
    watching = asyncio.create_task(
        watch_dns_accounts(solver, policy_of(profiles), lambda names: ["b"], told.append, clock)
    )
    for each in found:
        solver.found = each
        await settle()
        clock.advance(timedelta(minutes=1))
        await settle()
    watching.cancel()
    assert len(told) == moves
    assert solver.asked == [["a", "b"], *[["b"]] * len(found)]


async def test_nothing_is_asked_while_nothing_is_blocked() -> None:
    """Providers limit calls: they are asked at the start, and while hosts wait."""
    clock, solver = ManualClock(), Solver()
    policy = policy_of([])
    watching = asyncio.create_task(watch_dns_accounts(solver, policy, lambda _: [], lambda _: None, clock))
    for _ in range(3):
        await settle()
        clock.advance(timedelta(minutes=1))
        await settle()
    watching.cancel()
    assert solver.asked == [[]]
