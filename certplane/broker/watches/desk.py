"""All calls of WatchMyCertificates at one broker: who watches, what each is to be told, and when each ends.

A call costs this object's part of it and no task of its own. What is wanted of services is computed from durable state:
whatever may have changed for one has it read again, with all others of which that is so, one read at a time. So
nothing that is read later is told sooner, and nothing is kept here that a start or another broker would lack.

Whose identity may no longer be served is the edge's to find (`services.interceptors.open_streams`), as of all streams.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from certplane.broker import metrics
from certplane.broker.fleet.refusals import draining, failed
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.stream import LAST_WORDS
from certplane.broker.model import Caller, CertificateRecord
from certplane.broker.ports import Meter
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.watches.model import Goodbye, HeldByService, InForce, ServiceWatch, Told
from certplane.broker.watches.news import news_of
from certplane.broker.watches.ports import HeldCertificates, WatchStore
from certplane.broker.watches.recording import WatchRecorder
from certplane.broker.watches.session import WatchSession
from certplane.errors import Reason, RefusalError, Violation
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted

_logger = logging.getLogger("certplane.broker.watches")

_TOGETHER: Final = 128
"""Services that are read about together."""
_SLICE: Final = 512
"""Calls that are looked at before others get their turn: about a millisecond."""
_POLL: Final = timedelta(milliseconds=20)
"""While calls end."""
_COME_BACK: Final = Goodbye(timedelta(), "this call has lasted for hours; the next one may be at another broker")


@dataclass(slots=True, eq=False)
class OpenWatch:
    """One call, as the task that serves it sees it.

    Attributes:
        caller: The service.
        client_version: What it says of itself.
        heartbeat_time: When to say something next; monotonic.
        age_time: When it has lasted long enough; infinite for never.
    """

    caller: Caller
    client_version: str
    heartbeat_time: float
    age_time: float
    _desk: WatchDesk
    session: WatchSession = field(default_factory=WatchSession)
    _error: RefusalError | None = None
    _some: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_message(self) -> Told | None:
        """What to say next, waited for; None when all is said.

        Raises:
            RefusalError: why the call ends.
        """
        while True:
            if self._error is not None:
                raise self._error
            self._some.clear()
            message = self._desk.next_message(self)
            if message is not None or self.session.said_goodbye:
                return message
            await self._some.wait()

    def wake(self) -> None:
        """There may be something to say."""
        self._some.set()

    def end(self, error: RefusalError) -> None:
        """End the call with this; the first one stands."""
        self._error = self._error or error
        self.wake()


@dataclass(slots=True, eq=False)
class _Service:
    """A service that watches here, or did until a moment ago: that is being recorded."""

    connect_time: datetime
    watches: list[OpenWatch] = field(default_factory=list)
    last: ServiceWatch | None = None
    """As it was when its last call ended."""
    recorded_time: float = -math.inf


class WatchDesk:
    """All such calls of one broker."""

    def __init__(
        self,
        *,
        store: WatchStore,
        held: HeldCertificates,
        hashes: Callable[[], tuple[str, str, str]],
        settings: StreamSettings,
        clock: Clock,
        meter: Meter,
        rng: random.Random,
    ) -> None:
        """Nobody watches yet.

        Args:
            store: Where it is recorded who watches.
            held: Reads what services have.
            hashes: Of the policy and the agent CA bundle in force, and the retry epoch.
            settings: The limits, those of hosts' streams.
            clock: The time.
            meter: Counts.
            rng: For times to come back.
        """
        self.settings = settings
        self._store, self._held, self._hashes = store, held, hashes
        self._clock, self._meter, self._rng = clock, meter, rng
        self._services: dict[str, _Service] = {}
        self._recorder = WatchRecorder(store, self.here, self._recorded)
        self._in_force = self._current()
        self._due: dict[str, None] = {}
        """Services that are to be read about."""
        self._reading: asyncio.Task[None] | None = None
        self._trouble = ""
        """Why the last read failed; empty if it didn't."""
        self._count = 0
        self._on_presence: list[Callable[[str], None]] = []
        self._closed = False
        self._away = ""
        """Why services are sent to other brokers; empty if they aren't."""
        self._measure()

    # What others ask and tell.

    def here(self, service: str) -> ServiceWatch | None:
        """What is known of a service that watches here, or did a moment ago; None of all others."""
        known = self._services.get(service)
        if known is None or not known.watches:
            return None if known is None else known.last
        newest = known.watches[-1]
        return ServiceWatch(
            identity=service,
            broker_id=self._store.broker_id,
            watch_count=len(known.watches),
            client_version=newest.client_version,
            identity_serial_number=newest.caller.serial_number,
            identity_not_after=newest.caller.not_after,
            source_ip=newest.caller.source_ip,
            connect_time=known.connect_time,
            last_seen_time=self._clock.now(),
        )

    def __contains__(self, service: object) -> bool:
        """Whether a service watches here."""
        return isinstance(service, str) and bool(self._watches(service))

    def __len__(self) -> int:
        """How many calls there are."""
        return self._count

    def subscribe(self, on_presence: Callable[[str], None]) -> None:
        """Call `on_presence` with each service that begins or ends to watch here; it must not raise or wait."""
        self._on_presence.append(on_presence)

    def plans_changed(self, plans: Iterable[RenewalPlan]) -> None:
        """These plans are others, and durable."""
        self.services_changed(plan.host for plan in plans)

    def certificate_changed(self, certificate: CertificateRecord) -> None:
        """A certificate was issued or revoked, which is durable."""
        self.services_changed([certificate.identity])

    def services_changed(self, services: Iterable[str]) -> None:
        """Something of these identities' certificates may be another; those that don't watch here are passed over."""
        self._due.update(dict.fromkeys(service for service in services if service in self))
        self._read_soon()

    def everything_changed(self) -> None:
        """Anything may be."""
        self.services_changed([*self._services])

    # The calls.

    @contextmanager
    def watching(self, caller: Caller, client_version: str) -> Iterator[OpenWatch]:
        """A call, for the length of the block.

        Raises:
            RefusalError: DRAINING; RATE_LIMITED, there are too many, of this service or of all.
        """
        self._check(caller.name)
        now = self._clock.monotonic()
        watch = OpenWatch(
            caller,
            client_version,
            now + self.settings.heartbeat_interval.total_seconds(),
            now + self.settings.draw_age(self._rng),
            self,
        )
        known = self._services.get(caller.name)
        if known is None or not known.watches:
            known = self._services[caller.name] = _Service(self._clock.now())
        known.watches.append(watch)
        self._count += 1
        self._changed(caller.name)
        self.services_changed([caller.name])
        try:
            yield watch
        finally:
            ended = self.here(caller.name)
            known.watches.remove(watch)
            self._count -= 1
            if ended is not None and not known.watches:
                gone = self._clock.now()
                known.last = replace(ended, watch_count=0, last_seen_time=gone, end_time=gone)
            self._changed(caller.name)

    def next_message(self, watch: OpenWatch) -> Told | None:
        """What to say next in a call, if there is something now."""
        message = watch.session.next_message(self._clock.now(), self.settings.heartbeat_interval, self._in_force)
        if message is not None:
            watch.heartbeat_time = self._clock.monotonic() + self.settings.heartbeat_interval.total_seconds()
        return message

    def _check(self, service: str) -> None:
        if self._closed or self._away:
            raise draining()
        most, of_one = self.settings.service_watches, self.settings.watches_of_one
        known = self._services.get(service)
        if known is not None and len(known.watches) >= of_one:
            times = counted(of_one, "time")
            message = f"this identity watches its certificates {times} already; end one of those calls first"
            raise RefusalError(
                Reason.RATE_LIMITED, message, violations=[Violation("watches_of_one", f"{of_one} at once")]
            )
        if self._count >= most:
            message = "too many services watch their certificates at this broker; watch at another one, or later"
            raise RefusalError(
                Reason.RATE_LIMITED, message, violations=[Violation("service_watches", f"{most} at once")]
            )

    def _changed(self, service: str) -> None:
        """A service has another number of calls here."""
        self._measure()
        self._recorder.note(service, telling=True)
        for on_presence in self._on_presence:
            on_presence(service)

    def _measure(self) -> None:
        self._meter.level(metrics.SERVICE_WATCHES, self._count)

    def _recorded(self, written: Sequence[ServiceWatch]) -> None:
        """These are durable: who has gone is forgotten here, unless it has come back meanwhile."""
        for row in written:
            known = self._services.get(row.identity)
            if known is not None:
                known.recorded_time = self._clock.monotonic()
                if not known.watches and known.last == row:
                    del self._services[row.identity]

    # What is read.

    def _read_soon(self, *, again: bool = False) -> None:
        """Read about who is due; what failed waits for the next tick, which tries `again`."""
        if self._due and self._reading is None and (again or not self._trouble):
            self._reading = asyncio.create_task(self._read_all(), name="watches-read")

    async def _read_all(self) -> None:
        try:
            while self._due:
                await self._read([*islice(self._due, _TOGETHER)])
            self._trouble = ""
        except RefusalError as error:
            if str(error) != self._trouble:
                _logger.warning("could not read what services have; will retry: %s", error)
            self._trouble = str(error)
            self._refuse(error)
        finally:
            self._reading = None

    async def _read(self, services: Sequence[str]) -> None:
        for service in services:
            del self._due[service]  # before: what changes meanwhile is read again
        try:
            held = await self._held.held_by(services, self._clock.now())
            found: dict[str, list[HeldByService]] = {service: [] for service in services}
            for one in held:
                found[one.identity].append(one)
            news = {service: news_of(of_one) for service, of_one in found.items()}
        except RefusalError:
            self._due.update(dict.fromkeys(services))
            raise
        except Exception as error:
            if len(services) > 1:
                _logger.warning("could not read what several services have; reading one by one: %r", error)
                for service in services:
                    self._due[service] = None
                    await self._read([service])
                return
            _logger.exception(
                "could not tell a service of its certificates", extra={"fields": {"service": services[0]}}
            )
            for watch in self._watches(services[0]):
                watch.end(failed())
            return
        for service, of_one in news.items():
            for watch in self._watches(service):
                watch.session.know(of_one)
                watch.wake()

    def _refuse(self, error: RefusalError) -> None:
        """Who hasn't heard what it has may do better at another broker than wait here."""
        for service in self._due:
            for watch in self._watches(service):
                if not watch.session.listening:
                    watch.end(error)

    def _watches(self, service: str) -> Sequence[OpenWatch]:
        """Those of a service at this moment."""
        known = self._services.get(service)
        return () if known is None else tuple(known.watches)

    # The time.

    async def run(self) -> None:
        """Have time pass for all calls, until cancelled."""
        while True:
            await self._clock.sleep(self.settings.tick)
            try:
                await self.look()
            except Exception:
                _logger.exception("looking after the services that watch failed; will retry")

    async def look(self) -> None:
        """Say what the time, or another policy, has to be said; try again what failed."""
        self._read_soon(again=True)
        self._recorder.go_on()
        changed, self._in_force = self._in_force != (current := self._current()), current
        now, looked_at = self._clock.monotonic(), 0
        for name, known in [*self._services.items()]:
            if known.watches and now - known.recorded_time > self.settings.seen_interval.total_seconds():
                known.recorded_time = now
                self._recorder.note(name, telling=False)
            for watch in tuple(known.watches):
                self._pass_time(watch, now, changed=changed)
            looked_at += 1 + len(known.watches)
            if looked_at >= _SLICE:
                looked_at = 0
                await asyncio.sleep(0)

    def _pass_time(self, watch: OpenWatch, now: float, *, changed: bool) -> None:
        if now >= watch.age_time:
            watch.age_time = math.inf
            watch.session.say_goodbye(_COME_BACK)
        elif now >= watch.heartbeat_time:
            watch.heartbeat_time = now + self.settings.heartbeat_interval.total_seconds()
            watch.session.heartbeat()
        elif not changed:
            return
        watch.wake()

    def _current(self) -> InForce:
        policy_hash, _, retry_epoch = self._hashes()
        return InForce(policy_hash, retry_epoch)

    # The end.

    def send_away(self, why: str) -> None:
        """Say goodbye to all, each with another time to come back, and take no call until `stay`."""
        self._away = why
        for service in self._services:
            for watch in self._watches(service):
                watch.session.say_goodbye(Goodbye(self.settings.draw_return(self._count, self._rng), why))
                watch.wake()

    def stay(self) -> None:
        """Take calls again."""
        self._away = ""

    async def drain(self) -> None:
        """Say goodbye to all, and wait until the calls have ended and that is recorded; some seconds at most."""
        self._closed = True
        self.send_away("the broker is shutting down")
        deadline = self._clock.monotonic() + LAST_WORDS.total_seconds()
        while self._count and self._clock.monotonic() < deadline:
            await self._clock.sleep(_POLL)
        await self._recorder.finish(LAST_WORDS)
