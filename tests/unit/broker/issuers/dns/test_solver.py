"""What the solver adds to its provider: order, time limits, and removing that never fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock

RECORDS = [TxtRecord("zone.test", f"_acme-challenge.h{number}.zone.test", "v") for number in range(12)]


class ScriptedProvider:
    """A `DnsProvider` that does what it is told with each record, and counts how many it has at work."""

    def __init__(self, act: Callable[[TxtRecord], Awaitable[None]]) -> None:
        self.act = act
        self.at_work = self.most_at_work = 0
        self.closed = False

    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        return TxtRecord("", challenge.record_name, challenge.record_value)

    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._work(record)
        return TxtRecord("zone.test", record.name, record.value, "id")

    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._work(record)

    async def close(self) -> None:
        self.closed = True

    async def _work(self, record: TxtRecord) -> None:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await self.act(record)
        finally:
            self.at_work -= 1


def solver_of(provider: ScriptedProvider) -> DnsSolver:
    return DnsSolver(provider, PropagationCheck(nameservers=[HostPort("127.0.0.1", 1)]), SystemClock())


async def test_writes_a_few_at_once_and_keeps_the_order() -> None:
    """Many records are written four at a time, and come back in the order they went."""
    provider = ScriptedProvider(lambda record: asyncio.sleep(0.002 * (12 - int(record.name[17:].split(".")[0]))))
    written = await solver_of(provider).present(RECORDS, timedelta(seconds=5))
    assert [record.name for record in written] == [record.name for record in RECORDS]
    assert provider.most_at_work == 4


async def test_provider_that_hangs() -> None:
    """Writing ends by its deadline, whatever the provider does."""
    provider = ScriptedProvider(lambda _: asyncio.sleep(60))
    with pytest.raises(RefusalError) as caught:
        await solver_of(provider).present(RECORDS[:1], timedelta(seconds=0.1))
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE
    assert list(await solver_of(provider).remove(RECORDS[:2], timedelta(seconds=0.1))) == RECORDS[:2]


async def test_removing_goes_on_past_every_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals and faults of the program alike leave their record standing and the others removed; all are logged."""

    async def act(record: TxtRecord) -> None:
        if record is RECORDS[1]:
            raise RefusalError(Reason.DNS_REJECTED, "no permission")
        if record is RECORDS[2]:
            raise KeyError("a fault")

    standing = await solver_of(ScriptedProvider(act)).remove(RECORDS[:4], timedelta(seconds=5))
    assert list(standing) == RECORDS[1:3]
    logged = [(record.levelname, record.fields) for record in caplog.records if "not removed" in record.message]
    names = [{"record_name": record.name, "zone": record.zone, "record_id": ""} for record in RECORDS[1:3]]
    assert logged == list(zip(("WARNING", "ERROR"), names, strict=True))


async def test_removing_can_be_cancelled() -> None:
    """Cancellation is no failure to be swallowed."""
    removing = asyncio.create_task(
        solver_of(ScriptedProvider(lambda _: asyncio.sleep(60))).remove(RECORDS[:1], timedelta(seconds=60))
    )
    await asyncio.sleep(0.01)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing


async def test_closes_its_provider() -> None:
    """Who is closed closes what it was given."""
    provider = ScriptedProvider(lambda _: asyncio.sleep(0))
    await solver_of(provider).close()
    assert provider.closed
