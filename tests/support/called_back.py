"""A CA that calls certificates back: a real Pebble, whose windows a test moves."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from certplane.broker.app import Broker, open_broker
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.runtime.clock import SystemClock
from certplane.sandbox.deployment import Deployment, Host
from certplane.v1 import certificate_pb2 as pb
from tests.support.waiting import HANG


def execute(deployment: Deployment, statement: str) -> None:
    """Change the broker's database past it."""
    with closing(sqlite3.connect(deployment.broker_folder / "broker.db", timeout=HANG)) as database:
        database.execute(statement)
        database.commit()


async def call_back(deployment: Deployment, hosts: Iterable[Host], certificate: str) -> None:
    """The CA sets the windows of these hosts' certificates of this name into the past, and the broker asks it soon.

    Pebble lets nobody ask again for six hours, which no test has.
    """
    past = datetime.now(UTC) - timedelta(days=1)
    window = {"start": f"{past - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", "end": f"{past:%Y-%m-%dT%H:%M:%SZ}"}
    body = json.dumps({"suggestedWindow": window, "explanationURL": "https://ca.example/why"})
    for host in hosts:
        await deployment.pebble.set_renewal_info(host.output(certificate, "cert").read_text(), body)
    execute(deployment, "UPDATE renewal_plans SET next_check_time = 0")


class SteppedClock(SystemClock):
    """The machine's clock, which a test moves on; who sleeps then wakes."""

    def __init__(self) -> None:
        self._offset = timedelta()
        self._stepped = asyncio.Event()

    def now(self) -> datetime:
        return super().now() + self._offset

    async def sleep(self, span: timedelta) -> None:
        if span < timedelta(seconds=20):
            await super().sleep(span)
            return
        await asyncio.wait({asyncio.ensure_future(self._stepped.wait())}, timeout=span.total_seconds())

    def step(self, span: timedelta) -> None:
        self._offset += span
        stepped, self._stepped = self._stepped, asyncio.Event()
        stepped.set()


@dataclass
class World:
    """A deployment, and a broker in this process."""

    deployment: Deployment
    clock: SteppedClock = field(default_factory=SteppedClock)

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        settings = load_settings(self.deployment.broker_config)
        async with open_broker(prepare(settings), clock=self.clock) as broker:
            yield broker

    async def say(self, certificate: pb.Certificate, start: datetime, end: datetime, url: str = "") -> None:
        """Have the CA suggest this window."""
        window = {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        body = json.dumps({"suggestedWindow": window, "explanationURL": url})
        await self.deployment.pebble.set_renewal_info(certificate.certificate_pem, body)
