"""A hub and its hosts in one process, without a network: what tests of streams say and hear."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from certplane.broker.audit import RepeatCoalescer
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.messages import Directive, DirectiveResult, Hello, Outgoing
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.stream import ServedStream
from certplane.errors import Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, HostFacts, Report
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.renewal import FakeActivations
from tests.support.callers import caller
from tests.support.memory_store import MemoryStores

SECOND = timedelta(seconds=1)


class FaultyStore:
    """A `FleetStore` that brings out bugs of ours, for those hosts that are named here."""

    unreadable: frozenset[str] = frozenset()
    unwritable: frozenset[str] = frozenset()
    held: asyncio.Event | None = None

    def __init__(self, fleet: Any) -> None:
        self._fleet = fleet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fleet, name)

    async def list_hosts(self, *, hosts: Sequence[str] | None = None, **which: Any) -> Sequence[HostRecord]:
        if self.unreadable & set(hosts or ()):
            raise ValueError("a row of a newer release")
        found: Sequence[HostRecord] = await self._fleet.list_hosts(hosts=hosts, **which)
        return found

    async def record_reports(
        self, host: str, epoch: str, reports: Sequence[Report], *events: Any, **more: Any
    ) -> RecordedReports:
        if self.held is not None:
            await self.held.wait()
        if reports and host in self.unwritable:
            raise ValueError("a report that can't be encoded")
        recorded: RecordedReports = await self._fleet.record_reports(host, epoch, reports, *events, **more)
        return recorded


class World:
    """A hub and its hosts."""

    def __init__(self, settings: StreamSettings | None = None, *, beside: World | None = None) -> None:
        """Of a broker of its own, or of another one that shares the database."""
        self.clock = ManualClock() if beside is None else beside.clock
        self.stores = MemoryStores.open(self.clock) if beside is None else MemoryStores.over(beside.stores.database)
        self.store = FaultyStore(self.stores.fleet)
        self.meter = FakeMeter()
        self.hashes = ("p0", "t0", "e0")
        self.activations = FakeActivations()
        numbers = itertools.count(1)
        self.hub = FleetHub(
            store=self.store,
            plans=self.stores.renewal_plans,
            find_certificate=self.stores.certificates.get_certificate,
            hashes=lambda: self.hashes,
            count_displacement=self.stores.identities.count_displacement,
            repeats=RepeatCoalescer(
                self.stores.audit, self.stores.repeats, self.clock, lambda: f"count-{next(numbers)}"
            ),
            clock=self.clock,
            meter=self.meter,
            rng=random.Random(1),
            trail=AuditTrail(self.clock, lambda: f"event-{next(numbers)}"),
            settings=settings,
            activations=self.activations,
        )

    async def pass_time(self, span: timedelta, step: timedelta = SECOND) -> None:
        while span > timedelta():
            self.clock.advance(min(step, span))
            span -= step
            await settled()


class Host:
    """A host's side of a stream, without a network: what it is told, and how its stream ended."""

    def __init__(self, world: World, name: str, *, serial_number: str = "1f", answers: bool = False) -> None:
        """Its identity certificate's serial number; whether it takes each directive at once."""
        self.world = world
        self.name = name
        self.caller = caller(name=name, serial_number=serial_number)
        self.answers = answers
        self.told: list[Outgoing] = []
        self.end: BaseException | None = None
        self.stream: ServedStream | None = None
        self._inbox: asyncio.Queue[Report | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        hub = self.world.hub

        async def write(message: Outgoing) -> None:
            self.told.append(message)
            if self.answers and isinstance(message, Directive) and self.stream is not None:
                hub.answer(self.stream, DirectiveResult(message.nonce))

        stream = self.stream = hub.attach(self.caller, "r-1", write)
        try:
            await hub.hello(stream, Hello(HostFacts("0.1.0"), "epoch-1", ("web",), (), self.world.clock.now()))
            while (report := await self._inbox.get()) is not None:
                await hub.report(stream, report)
        except asyncio.CancelledError:
            if not stream.was_ended():
                raise
            self.end = stream.end_reason
        finally:
            hub.detach(stream)

    async def report(self, sequence: int, status: CertificateStatus | None = None) -> None:
        self._inbox.put_nowait(Report(sequence, status or CertificateStatus("web", CertificateState.DUE)))
        await settled()

    async def answer(self, error: Refusal | None = None) -> None:
        assert self.stream is not None
        self.world.hub.answer(self.stream, DirectiveResult(self.directives[-1].nonce, error))
        await settled()

    @property
    def directives(self) -> list[Directive]:
        return [message for message in self.told if isinstance(message, Directive)]


async def settled() -> None:
    """Let everything go on that waits for nothing but its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(world: World, *names: str) -> AsyncIterator[list[Host]]:
    """The hub at work, and hosts with streams."""
    looking = asyncio.create_task(world.hub.supervision.run())
    hosts = [Host(world, name) for name in names]
    await settled()
    try:
        yield hosts
        assert not looking.done()
    finally:
        tasks = {looking, *(host.task for host in hosts)}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await settled()
