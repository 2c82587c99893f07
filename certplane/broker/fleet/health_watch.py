"""The health of the whole fleet, computed every minute: its figures, and what time alone has changed.

A host that is down reports nothing when its certificate expires. So the hosts whose health the time will change before
the next round are noted; at that moment watchers of the fleet are told that the host has changed.

Of brokers that share a database one tells the figures (`lead`), or sums would count the fleet several times. The others
read the fleet only while somebody watches it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from certplane.broker.fleet.figures import FleetFigures, Link
from certplane.broker.fleet.health import in_use, next_change
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.view import FleetView
from certplane.broker.fleet.watching import Watchers
from certplane.broker.ports import Meter, PolicySource
from certplane.errors import RefusalError
from certplane.fleet_report.model import CertificateStatus
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker.fleet")

_SHARE: Final = 20
"""A round takes at most this part of the time: a fleet that takes longer to read is read less often."""
_TOGETHER: Final = 128
"""Hosts that are read at once, of those that have reported to other brokers."""
_SLICE: Final = 32
"""Hosts that are read before others get their turn: about a millisecond."""


class HealthWatch:
    """Computes the health of the fleet, while `run` runs. For the event loop's thread."""

    def __init__(
        self,
        *,
        view: FleetView,
        watchers: Watchers,
        policy: PolicySource,
        clock: Clock,
        meter: Meter,
        settings: StreamSettings,
        most_hosts: int = 1000,
    ) -> None:
        """Nothing is known yet.

        Args:
            view: What is read.
            watchers: Who is told; whatever else they are told of a certificate is heard here too.
            policy: Whose profiles are measured: what a host calls one is its own word.
            clock: The time.
            meter: Measures.
            settings: How often.
            most_hosts: Up to how large a fleet each certificate is shown.
        """
        self._view = view
        self._watchers = watchers
        self._policy = policy
        self._clock = clock
        self._meter = meter
        self._settings = settings
        self._most_hosts = most_hosts
        self._leading = False
        self._pause = settings.figures_interval
        self._due: dict[tuple[str, str], datetime] = {}
        """When time changes the health of which certificates, by host and name: those before the next round alone."""
        self._horizon = self._told = clock.now()
        """Until when such moments are noted; until when watchers were told of them, or there were none."""
        self._unread: dict[str, None] = {}
        """Hosts that have reported to other brokers since the round began."""
        self._profiles: frozenset[str] = frozenset()
        watchers.listen(self._note, self._note_elsewhere)

    async def lead(self) -> None:
        """Tell the figures, until cancelled."""
        self._leading = True
        try:
            await asyncio.Event().wait()
        finally:
            self._leading = False

    async def run(self) -> None:
        """Work until cancelled."""
        said = ""
        while True:
            while not self._leading and not len(self._watchers):
                self._told = self._clock.now()
                await self._clock.sleep(self._settings.tick)
            begun = self._clock.monotonic()
            try:
                await self._compute()
            except RefusalError as error:
                if str(error) != said:
                    _logger.warning("could not read the health of the fleet; will retry: %s", error)
                said = str(error)
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("computing the health of the fleet failed; will retry")
                said = repr(error)
            else:
                said = ""
            spent = timedelta(seconds=self._clock.monotonic() - begun)
            self._pause = max(self._settings.figures_interval, spent * _SHARE)
            await self._tell_until(self._clock.monotonic() + self._pause.total_seconds())

    async def _compute(self) -> None:
        policy, now = self._policy.current, self._clock.now()
        figures = FleetFigures(now, self._most_hosts, lambda profile: policy.find_profile(profile) is not None)
        expected = set(policy.host_names)
        self._horizon = now + 2 * self._pause  # the next round may come late
        self._due.clear()
        self._unread.clear()
        number = 0
        async for record, healths in self._view.survey():
            expected.discard(record.host)
            figures.add_host(Link.UP if self._view.is_connected(record) else Link.DOWN)
            for status, health in zip(record.certificates, healths, strict=True):
                held = in_use(status)
                figures.add_certificate(
                    record.host,
                    status.name,
                    profile=status.profile,
                    issuer="",
                    state=status.state,
                    health=health.word,
                    not_after=None if held is None else held.not_after,
                )
                self._note(record.host, status)
            number += 1
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        figures.add_host(Link.NEVER, len(expected))
        if self._leading:
            self._profiles = figures.show(self._meter, self._profiles)

    def _note(self, host: str, status: CertificateStatus) -> None:
        """Note when time will change the health of a certificate, if that is before the next round; or just has."""
        moment = next_change(status, self._told)
        if moment is not None and moment <= self._horizon:
            self._due[host, status.name] = moment

    def _note_elsewhere(self, host: str) -> None:
        if self._leading or len(self._watchers):  # else nobody is told before the next round
            self._unread[host] = None

    async def _read_elsewhere(self) -> None:
        """Note the same of hosts that have reported to other brokers, if there is anybody to be told."""
        while self._unread and len(self._watchers):
            hosts = tuple(islice(self._unread, _TOGETHER))
            for record in await self._view.records(hosts):
                for status in record.certificates:
                    self._note(record.host, status)
            for host in hosts:
                self._unread.pop(host, None)

    async def _tell_until(self, deadline: float) -> None:
        """Tell watchers of those whose time comes before `deadline`, of the monotonic clock."""
        while (left := deadline - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(self._settings.tick, timedelta(seconds=left)))
            with contextlib.suppress(RefusalError):  # the next tick tries again
                await self._read_elsewhere()
            self._told = now = self._clock.now()
            changed = [key for key, moment in self._due.items() if moment <= now]
            for key in changed:
                del self._due[key]
            for host in dict.fromkeys(host for host, _ in changed):
                self._watchers.host_changed(host, now)
