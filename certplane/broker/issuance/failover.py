"""Which issuer an order goes to: the first of its profile's list that isn't known to be out.

An issuer is out while it can't be reached (`suspect`), or while its account has to wait or wants a person (the queue's
holds). Which class a failure is of decides (`outcome.fails_over`), never which names were asked for. What is out is
asked again when its time is over: so the primary is used again when it recovers, and one order finds out.

Where every issuer is out, the order keeps the one that it has, or the first, and is told what that one says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from certplane.broker.issuance.outcome import is_told
from certplane.broker.issuance.queue import Lane, OrderQueue
from certplane.errors import Refusal

_SUSPECT_FOR: Final = timedelta(minutes=5)


class _Suspicion(NamedTuple):
    until: datetime
    refusal: Refusal
    epoch: str


class IssuerChoice:
    """Chooses issuers, and remembers which ones are out. In memory: after a restart all are asked again.

    With another retry epoch too, but for those that have said for how long they are away.
    """

    def __init__(self, queue: OrderQueue, epoch: Callable[[], str] = str) -> None:
        self._queue = queue
        self._epoch = epoch
        self._suspicions: dict[str, _Suspicion] = {}

    def suspect(self, issuer: str, now: datetime, refusal: Refusal) -> None:
        """The issuer can't be reached, as `refusal` says: it is left alone for as long as that says, or a while."""
        until = now + max(refusal.retry_after or timedelta(), _SUSPECT_FOR)
        self._suspicions[issuer] = _Suspicion(until, refusal, self._epoch())

    def suspected(self, issuer: str, now: datetime) -> Refusal | None:
        """Why the issuer is thought to be out of reach; None if it isn't."""
        suspicion = self._standing(issuer)
        return suspicion.refusal if suspicion is not None and suspicion.until > now else None

    def _standing(self, issuer: str) -> _Suspicion | None:
        suspicion = self._suspicions.get(issuer)
        if suspicion is None or suspicion.epoch == self._epoch() or is_told(suspicion.refusal):
            return suspicion
        return None

    def works(self, issuer: str) -> None:
        """The issuer has issued."""
        self._suspicions.pop(issuer, None)

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
        suspicion = self._standing(issuer)
        held = self._queue.held(lane, now)
        return max(now, suspicion.until if suspicion is not None else now, held[0] if held is not None else now)
