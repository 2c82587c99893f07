"""Revokes what rollouts have replaced, certificate by certificate, once nobody uses it.

What may be revoked the machine says anew with each step, so that a rollout that is paused, halted or aborted has
nothing revoked any more. Here it is looked at once more, right before the CA is asked: its host has the certificate at
none of its paths and serves it nowhere, the rollout goes on, and this broker's lease stands. A service says nothing of
what it uses: what it had is left to an operator's word.

Each revocation is decided, audited, done and recorded by `issuance.revocation`, and safe to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker.fleet.index import FleetIndex
from certplane.broker.members.ports import Lease
from certplane.broker.model import CertificateRecord, IdentityKind, RevocationReason
from certplane.broker.rollouts.facts import Certificates, uses
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.model import Finish, Rollout, RolloutItem
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint

_logger = logging.getLogger("certplane.broker.rollouts")

_AT_ONCE: Final = 4
"""Questions to CAs under way: as many as about renewals (`renewal.planner`)."""
_LOOK: Final = timedelta(seconds=1)
"""Between looks at what waits for another try."""
_RETRY: Final = Backoff(timedelta(seconds=10), timedelta(hours=1))
_LEFT: Final = timedelta(minutes=1)
"""Until what is still in use is looked at again."""


class Revokes(Protocol):
    """Takes certificates back."""

    async def revoke_replaced(
        self, rollout_id: str, operator: str, certificate_id: str, reason: RevocationReason, why: str
    ) -> CertificateRecord:
        """Revoke one certificate alone, at its CA and here; again if it was, without effect.

        Raises:
            RefusalError: it isn't revoked, or that isn't known: ask again.
        """
        ...


@dataclass(slots=True)
class _Wanted:
    """One certificate that is to be revoked."""

    rollout: Rollout
    item: RolloutItem
    failures: int = 0
    try_time: float = 0.0
    said: str = ""


class ReplacedRevocations:
    """Revokes, while `run` runs. For the event loop's thread."""

    def __init__(
        self,
        *,
        revokes: Revokes,
        certificates: Certificates,
        index: FleetIndex,
        lease: Lease,
        known: KnownRollouts,
        clock: Clock,
        rng: random.Random,
        revoked: Callable[[str, str, datetime], None],
    ) -> None:
        """Nothing is to be revoked; `revoked` is told the rollout, the certificate, and when it was revoked."""
        self._revokes = revokes
        self._certificates = certificates
        self._index = index
        self._lease = lease
        self._known = known
        self._clock = clock
        self._rng = rng
        self._revoked = revoked
        self._waiting: dict[str, dict[str, _Wanted]] = {}
        """By rollout and certificate."""
        self._busy: set[str] = set()
        self._issuers_held: dict[str, float] = {}
        """Until when a CA isn't asked."""

    def want(self, rollout: Rollout, items: Iterable[RolloutItem]) -> None:
        """These are what may be revoked of a rollout from now on, and no others."""
        before = self._waiting.pop(rollout.rollout_id, {})
        wanted: dict[str, _Wanted] = {}
        for item in items:
            one = wanted[item.certificate_id] = before.get(item.certificate_id) or _Wanted(rollout, item)
            one.rollout, one.item = rollout, item
        if wanted:
            self._waiting[rollout.rollout_id] = wanted

    def forget(self, rollout_id: str) -> None:
        """Nothing of this rollout is to be revoked any more."""
        self._waiting.pop(rollout_id, None)

    async def run(self) -> None:
        """Revoke, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for one in self._due():
                    self._busy.add(one.item.certificate_id)
                    group.create_task(self._try(one), name="rollout-revocation")
                await self._clock.sleep(_LOOK if not self._busy else _LOOK / 10)

    def _due(self) -> list[_Wanted]:
        """Those whose turn it is, as many as may be under way."""
        now, room = self._clock.monotonic(), _AT_ONCE - len(self._busy)
        found: list[_Wanted] = []
        for wanted in self._waiting.values():
            for certificate_id, one in wanted.items():
                if len(found) >= room:
                    return found
                held = self._issuers_held.get(one.item.issuer, 0.0)
                if certificate_id not in self._busy and max(one.try_time, held) <= now:
                    found.append(one)
        return found

    async def _try(self, one: _Wanted) -> None:
        item = one.item
        try:
            time = await self._revoke(one)
        except RefusalError as error:
            self._note_failure(one, error)
        except Exception as error:
            one.failures += 1
            one.try_time = self._clock.monotonic() + _RETRY.wait(one.failures, self._rng).total_seconds()
            if repr(error) != one.said:
                _logger.exception("could not revoke a replaced certificate; will retry", extra=_fields(one))
            one.said = repr(error)
        else:
            if time is None:
                one.try_time = self._clock.monotonic() + _LEFT.total_seconds()
            else:
                self._waiting.get(item.rollout_id, {}).pop(item.certificate_id, None)
                self._revoked(item.rollout_id, item.certificate_id, time)
        finally:
            self._busy.discard(item.certificate_id)

    async def _revoke(self, one: _Wanted) -> datetime | None:
        """When it was revoked; None if it may not be now."""
        item, spec = one.item, one.rollout.spec
        record = await self._certificates.get_certificate(item.certificate_id)
        if record is None:
            return self._clock.now()  # it ended so long ago that nothing is known of it any more
        if record.revoke_time is None and not self._may_be(one, record):
            return None
        failpoint("rollout.revoke.before")
        why = f"replaced by the rollout {item.rollout_id}: {spec.reason}"
        revoked = await self._revokes.revoke_replaced(
            item.rollout_id, one.rollout.created_by, item.certificate_id, spec.revocation_reason, why
        )
        failpoint("rollout.revoke.after")
        return revoked.revoke_time or self._clock.now()

    def _may_be(self, one: _Wanted, record: CertificateRecord) -> bool:
        """Whether nobody uses it any more, as far as can be seen now; or an operator has said that it may be."""
        wanted = self._waiting.get(one.item.rollout_id, {}).get(one.item.certificate_id)
        if wanted is not one or not self._known.goes_on(one.item.rollout_id) or not self._lease.stands():
            return False
        if one.rollout.finish is Finish.REVOKE:
            return True
        host = self._index.hosts.get(one.item.host)
        if host is None or host.kind is IdentityKind.SERVICE:
            return False
        return not uses(host, record.certificate_id, record.serial_number)

    def _note_failure(self, one: _Wanted, error: RefusalError) -> None:
        """Try again later; what the CA says of its own limits holds all of its certificates up."""
        refusal, now = error.refusal, self._clock.monotonic()
        one.failures += 1
        wait = max(_RETRY.wait(one.failures, self._rng), refusal.retry_after or timedelta())
        one.try_time = now + wait.total_seconds()
        if refusal.reason is Reason.ISSUER_RATE_LIMITED:
            self._issuers_held[one.item.issuer] = one.try_time
        if refusal.message != one.said:
            _logger.warning("could not revoke a replaced certificate; will retry: %s", error, extra=_fields(one))
        one.said = refusal.message


def _fields(one: _Wanted) -> dict[str, dict[str, str]]:
    item = one.item
    return {"fields": {"rollout_id": item.rollout_id, "certificate_id": item.certificate_id, "issuer": item.issuer}}
