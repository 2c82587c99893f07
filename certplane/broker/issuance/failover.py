"""Which issuer an order goes to: the first of its profile's list that isn't known to be out.

An issuer is out while it can't be reached (`suspect`), or while its account has to wait or wants a person (the queue's
holds). Which class a failure is of decides (`outcome.fails_over`), never which names were asked for. What is out is
asked again when its time is over: so the primary is used again when it recovers, and one order finds out.

Where every issuer is out, the order keeps the one that it has, or the first, and is told what that one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.issuance.queue import Lane, OrderQueue

__all__ = ["IssuerChoice"]

_SUSPECT_FOR: Final = timedelta(minutes=5)


class IssuerChoice:
    """Chooses issuers, and remembers which ones are out. In memory: after a restart all are asked again."""

    def __init__(self, queue: OrderQueue) -> None:
        self._queue = queue
        self._suspect_until: dict[str, datetime] = {}

    def suspect(self, issuer: str, now: datetime, wait: timedelta | None) -> datetime:
        """The issuer can't be reached; `wait` is what it said itself. Returns until when it is left alone."""
        until = now + max(wait or timedelta(), _SUSPECT_FOR)
        self._suspect_until[issuer] = until
        return until

    def works(self, issuer: str) -> None:
        """The issuer has issued."""
        self._suspect_until.pop(issuer, None)

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
            suspected = self._suspect_until.get(issuer)
            if issuer in but or (suspected is not None and suspected > now):
                continue
            if self._queue.held(Lane(issuer, acme_profile, dns_names), now) is None:
                return issuer
        return "" if but else issuers[0]
