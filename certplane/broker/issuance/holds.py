"""What the issuers are not to be asked for now.

Rules:

- When a CA says that something has to wait (a rate limit), nobody asks for that before, and everybody else does: a
  limit of one domain holds up no other, one of the account holds up all.
- An issuer that can't be reached is suspected: where a profile has another issuer, its orders go there meanwhile.
- A hold whose length is a guess of ours (the CA wants something of a person), and a suspicion whose length the issuer
  hasn't said, end with the retry epoch, since the cause may be mended.

They live in memory: after a restart the first order that meets the limit is told of it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from certplane.broker.issuance.outcome import is_told
from certplane.broker.issuance.queue import Lane
from certplane.broker.model import Scope, ScopeKind
from certplane.errors import Refusal

_SUSPECT_FOR: Final = timedelta(minutes=5)

_LONGEST_HOLD: Final = timedelta(days=31)
"""No CA's limit lasts longer (the longest known window is a week): the clock was set back since."""


class _Hold(NamedTuple):
    until: datetime
    refusal: Refusal
    epoch: str


class IssuerHolds:
    """Remembers them."""

    def __init__(self, epoch: Callable[[], str] = str) -> None:
        """None yet; `epoch` says the retry epoch."""
        self._epoch = epoch
        self._holds: dict[tuple[str, Scope, tuple[str, ...]], _Hold] = {}
        """By issuer, scope, and for a name set its names."""
        self._suspicions: dict[str, _Hold] = {}

    def hold(self, lane: Lane, scopes: Iterable[Scope], until: datetime, refusal: Refusal) -> bool:
        """Nobody should ask the issuer of `lane` for what falls under `scopes` before `until`.

        Args:
            lane: whose order was refused.
            scopes: what the refusal is about.
            until: when it ends; an earlier end than one that is known changes nothing.
            refusal: what the CA said.

        Returns:
            Whether anything is held now, or for longer, that was not before.
        """
        news = False
        for scope in scopes:
            names = lane.dns_names if scope.kind is ScopeKind.NAME_SET else ()
            known = self._holds.get((lane.issuer, scope, names))
            if known is None or known.until < until:
                self._holds[lane.issuer, scope, names] = _Hold(until, refusal, self._epoch())
                news = True
        return news

    def held(self, lane: Lane, now: datetime) -> tuple[datetime, Refusal] | None:
        """Until when, and why, `lane` must not ask the CA; None if it may."""
        self._holds = {
            key: hold
            for key, hold in self._holds.items()
            if now < hold.until < now + _LONGEST_HOLD and self._counts(hold)
        }
        covering = [
            hold
            for (issuer, scope, names), hold in self._holds.items()
            if issuer == lane.issuer and scope.covers(lane.dns_names, names)
        ]
        if not covering:
            return None
        longest = max(covering, key=lambda hold: hold.until)
        return longest.until, longest.refusal

    def suspect(self, issuer: str, now: datetime, refusal: Refusal) -> None:
        """The issuer can't be reached, as `refusal` says: it is left alone for as long as that says, or a while."""
        until = now + max(refusal.retry_after or timedelta(), _SUSPECT_FOR)
        self._suspicions[issuer] = _Hold(until, refusal, self._epoch())

    def suspected(self, issuer: str, now: datetime) -> tuple[datetime, Refusal] | None:
        """Until when, and why, the issuer is thought to be out of reach; None if it isn't."""
        suspicion = self._suspicions.get(issuer)
        if suspicion is None or suspicion.until <= now or not self._counts(suspicion):
            return None
        return suspicion.until, suspicion.refusal

    def works(self, issuer: str) -> None:
        """The issuer has issued."""
        self._suspicions.pop(issuer, None)

    def _counts(self, hold: _Hold) -> bool:
        return hold.epoch == self._epoch() or is_told(hold.refusal)
