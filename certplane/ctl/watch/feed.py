"""Follows the fleet at the broker: a watch that ends begins again, with the identity that the files hold by then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import timedelta
from typing import Final, NoReturn, Protocol

from certplane.errors import OF_ONE_BROKER, CertplaneError, ConfigurationError, OperationError, Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.v1 import audit_pb2, budget_pb2, fleet_pb2, incident_pb2, order_pb2, renewal_pb2, rollout_pb2

AGAIN: Final = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=30), floor=timedelta(milliseconds=200))
"""Between two watches."""
PASSING: Final = OF_ONE_BROKER | {Reason.RATE_LIMITED}
"""Refusals that every watch outlives."""
MOST: Final = 50
"""Orders, audit events, rollouts or incidents of a page: the newest."""


class FleetSource(Protocol):
    """The broker's calls that a watch needs. Only `RefusalError` and `OperationError` escape."""

    def watch(self, hosts: Sequence[str]) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        """The fleet as it is, and each change, until the broker ends it."""
        ...

    async def summarize(self) -> fleet_pb2.SummarizeFleetResponse:
        """The five questions of a night."""
        ...

    async def host(self, name: str) -> renewal_pb2.Host:
        """All that is known of a host."""
        ...

    async def last_orders(self, wanted: order_pb2.OrderFilter, most: int) -> Sequence[order_pb2.OrderStatus]:
        """The newest orders that match, open ones first."""
        ...

    async def last_events(self, wanted: audit_pb2.AuditFilter, most: int) -> Sequence[audit_pb2.AuditEvent]:
        """The newest events that match, the newest first."""
        ...


class CampaignSource(Protocol):
    """The broker's calls about rollouts, incidents and limits. Errors as of `FleetSource`."""

    async def last_rollouts(self, most: int) -> Sequence[rollout_pb2.Rollout]:
        """Those that run first, then the newest."""
        ...

    def watch_rollout(self, rollout_id: str) -> AsyncGenerator[rollout_pb2.Rollout, None]:
        """One as it is, and after each change, until it or the broker has ended."""
        ...

    async def last_incidents(self, most: int) -> Sequence[incident_pb2.Incident]:
        """Open ones first, then the newest."""
        ...

    async def budget(self) -> budget_pb2.GetBudgetResponse:
        """What the CAs' limits leave."""
        ...


class WatchSource(FleetSource, CampaignSource, Protocol):
    """All that a watch needs."""


Connect = Callable[[], AbstractAsyncContextManager[WatchSource]]
"""A new way to the broker, with the files as they are now.

Raises:
    ConfigurationError: one can't be used.
"""


class WatchDisplay(Protocol):
    """Shows a watch."""

    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        """Take in one message."""
        ...

    def interrupted(self, text: str, again: timedelta) -> None:
        """The watch has ended for now; a new one begins with the whole fleet, after this time."""
        ...


class Feed:
    """A watch that goes on."""

    def __init__(self, connect: Connect, hosts: Sequence[str], clock: Clock, *, patient: bool) -> None:
        """`patient`: once the watch has begun no refusal ends it: somebody reads what is said of it."""
        self.source: WatchSource | None = None
        """Where the watch is; None while it is interrupted."""
        self._connect = connect
        self._hosts = hosts
        self._clock = clock
        self._patient = patient
        self._hurried = asyncio.Event()
        self._begun = False
        self._known = not hosts
        """Whether all hosts that were asked for have been seen."""

    async def follow(self, display: WatchDisplay) -> NoReturn:
        """Show the fleet until cancelled.

        Raises:
            CertplaneError: it never began, or can't go on.
        """
        rng = random.SystemRandom()
        failures = 0
        while True:
            told = False
            try:
                async with aclosing(self._watch()) as messages:
                    async for message in messages:
                        display.show(message)
                        self._begun = told = True
                text, wait = "the broker has ended the watch", None
            except CertplaneError as error:
                if self._ends(error, told=told):
                    raise
                text, wait = str(error), retry_after(error)
            failures = 1 if told else failures + 1
            pause = max(AGAIN.wait(failures, rng), wait or timedelta())
            display.interrupted(text, pause)
            await self._wait(pause)

    def hurry(self) -> None:
        """Don't wait for the next try."""
        self._hurried.set()

    async def _wait(self, pause: timedelta) -> None:
        self._hurried.clear()
        waiting = [asyncio.ensure_future(each) for each in (self._clock.sleep(pause), self._hurried.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _ends(self, error: CertplaneError, *, told: bool) -> bool:
        """Whether a watch that failed so isn't tried again.

        What fails before it has begun is a mistake rather than a restart, unless somebody waits who sees what is said.
        A refusal stays; but one that was told something may have had an identity that has expired by now, while the
        file has a new one.
        """
        if isinstance(error, RefusalError):
            stays = error.refusal.reason not in PASSING
            return stays and (not self._begun or not (told or self._patient))
        if isinstance(error, NoSuchHostError):
            return True
        if isinstance(error, ConfigurationError):
            return not self._begun
        return not self._begun and not self._patient

    async def _watch(self) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        """The messages of one watch, over a connection of its own; a host that isn't there is an error."""
        missing = set() if self._known else set(self._hosts)
        try:
            async with self._connect() as self.source, aclosing(self.source.watch(self._hosts)) as messages:
                async for message in messages:
                    yield message
                    match message.WhichOneof("event"):
                        case "host":
                            missing -= {message.host.name, message.host.label}
                        case "snapshot_end":
                            if missing:
                                raise NoSuchHostError(sorted(missing))
                            self._known = True
                        case _:
                            pass
        finally:
            self.source = None


class NoSuchHostError(OperationError):
    """Hosts that were asked for aren't in the fleet."""

    def __init__(self, names: Sequence[str]) -> None:
        """The names as they were given."""
        what = f"there is no host {names[0]}" if len(names) == 1 else f"there are no hosts {', '.join(names)}"
        super().__init__(f"{what} in the fleet", remedy="compare with `certplanectl fleet`")


def retry_after(error: CertplaneError) -> timedelta | None:
    """When the broker wants to be asked again; None if it doesn't say."""
    return error.refusal.retry_after if isinstance(error, RefusalError) else getattr(error, "retry_after", None)
