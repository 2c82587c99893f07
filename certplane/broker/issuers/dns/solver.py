"""`DnsSolver`: the port `ChallengeSolver`, on a provider and a propagation check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.errors import Reason, RefusalError
from certplane.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from certplane.broker.issuers.dns.propagation import PropagationCheck
    from certplane.broker.issuers.dns.provider import DnsProvider
    from certplane.broker.model import DnsChallenge, Profile, TxtRecord
    from certplane.runtime.clock import Clock

__all__ = ["DnsSolver"]

T = TypeVar("T")
_log = logging.getLogger(__name__)

_PARALLEL = 4
"""Writes under way at once. DNS APIs limit callers (Cloudflare: 1200 requests in five minutes for all of a user's)."""


class DnsSolver:
    """Makes the world see TXT records, and removes them."""

    def __init__(self, provider: DnsProvider, check: PropagationCheck, clock: Clock) -> None:
        """Put it together; nothing is sent."""
        self._provider, self._check, self._clock = provider, check, clock
        self._writes = asyncio.Semaphore(_PARALLEL)

    async def close(self) -> None:
        """Close the provider's connections."""
        await self._provider.close()

    async def plan(
        self,
        challenges: Sequence[DnsChallenge],
        profile: Profile,
        timeout: timedelta,  # noqa: ARG002 - nothing is asked yet
    ) -> Sequence[TxtRecord]:
        """See `ChallengeSolver.plan`."""
        return [self._provider.plan(challenge, profile) for challenge in challenges]

    async def present(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        """See `ChallengeSolver.present`."""
        deadline = Deadline.after(timeout, self._clock)

        async def add(record: TxtRecord) -> TxtRecord:
            written = await self._within(deadline, lambda: self._provider.add_txt(record, deadline))
            _log.info("TXT record written", extra=_fields(written))
            failpoint("dns.present.written")
            return written

        return await all_of(add(record) for record in records)

    async def wait_until_visible(self, records: Sequence[TxtRecord], timeout: timedelta) -> None:
        """See `ChallengeSolver.wait_until_visible`."""
        await self._check.wait(records, Deadline.after(timeout, self._clock))
        for record in records:
            _log.info("TXT record visible on every authoritative server", extra=_fields(record))

    async def remove(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        """See `ChallengeSolver.remove`."""
        deadline = Deadline.after(timeout, self._clock)

        async def remove(record: TxtRecord) -> bool:
            try:
                await self._within(deadline, lambda: self._provider.remove_txt(record, deadline))
            except RefusalError as error:
                _log.warning("TXT record not removed: %s", error, extra=_fields(record))
                return False
            except Exception:  # noqa: BLE001 - an order never fails over tidying up: what stands is returned
                _log.exception("TXT record not removed", extra=_fields(record))
                return False
            _log.info("TXT record removed", extra=_fields(record))
            failpoint("dns.remove.removed")
            return True

        removed = await all_of(remove(record) for record in records)
        return [record for record, gone in zip(records, removed, strict=True) if not gone]

    async def _within(self, deadline: Deadline, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            async with asyncio.timeout(deadline.left.total_seconds()), self._writes:
                return await write()
        except TimeoutError as error:
            raise RefusalError(Reason.DNS_UNAVAILABLE, "the DNS provider took too long") from error


def _fields(record: TxtRecord) -> dict[str, dict[str, str]]:
    return {"fields": {"record_name": record.name, "zone": record.zone, "record_id": record.record_id}}
