"""Which issuer an order goes to: the first of its profile's list that isn't known to be out.

An issuer is out while it can't be reached, or while its account has to wait or wants a person (`holds`). Which class a
failure is of decides (`outcome.fails_over`), never which names were asked for. What is out is asked again when its time
is over: so the primary is used again when it recovers, and one order finds out.

Where every issuer is out, the order keeps the one that it has, or the first, and is told what that one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.queue import Lane


class IssuerChoice:
    """Chooses issuers."""

    def __init__(self, holds: IssuerHolds) -> None:
        self._holds = holds

    def wait(self, issuers: Sequence[str], dns_names: tuple[str, ...], acme_profile: str, now: datetime) -> timedelta:
        """How long until one of `issuers`, of which there is one at least, isn't out any more."""
        return min(self._out_until(issuer, Lane(issuer, acme_profile, dns_names), now) for issuer in issuers) - now

    def choose(
        self,
        issuers: Sequence[str],
        dns_names: tuple[str, ...],
        acme_profile: str,
        now: datetime,
        *,
        but: frozenset[str] = frozenset(),
    ) -> str:
        """The issuer to use; empty if `but` leaves none that isn't out.

        Args:
            issuers: Those that the profile allows, in its order; at least one.
            dns_names: What is asked for: a limit may be about them.
            acme_profile: The CA's profile.
            now: The time.
            but: Those that were tried already. Without any, the first of `issuers` is the answer when all are out.
        """
        for issuer in issuers:
            if issuer not in but and self._out_until(issuer, Lane(issuer, acme_profile, dns_names), now) <= now:
                return issuer
        return "" if but else issuers[0]

    def _out_until(self, issuer: str, lane: Lane, now: datetime) -> datetime:
        """When the issuer isn't out any more for the lane's names; `now` if it isn't."""
        found = (self._holds.suspected(issuer, now), self._holds.held(lane, now))
        return max((now, *(until for until, _ in filter(None, found))))
