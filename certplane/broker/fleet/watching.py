"""Who watches the fleet, and what each has still to be told.

A watcher's changes are kept by host and certificate, the latest of each, so that one who reads slowly costs no more
than the fleet is large and never gets an old state after a new one. Nothing is read or waited for here: of what other
brokers have recorded it is only noted that it is to be read, when it is told, so that it can't be older than what was
told before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, TypeAlias

from certplane.broker import metrics
from certplane.broker.fleet.model import RevokedCertificate
from certplane.broker.fleet.refusals import draining
from certplane.broker.ports import Meter
from certplane.errors import Reason, RefusalError, Violation
from certplane.fleet_report.model import CertificateStatus

_logger = logging.getLogger("certplane.broker.fleet")


@dataclass(frozen=True, slots=True)
class HostChanged:
    """A host came, left, or answered a directive, or the health of a certificate changed: read it again."""

    host: str
    time: datetime


@dataclass(frozen=True, slots=True)
class CertificateChanged:
    """A certificate of a host is as said here now."""

    host: str
    certificate: CertificateStatus
    time: datetime


@dataclass(frozen=True, slots=True)
class CertificateRemoved:
    """A host no longer has a certificate."""

    host: str
    name: str
    time: datetime


@dataclass(frozen=True, slots=True)
class CertificateRecorded:
    """Another broker has recorded a host's report of a certificate, or that the host no longer has it: read it."""

    host: str
    name: str
    time: datetime


@dataclass(frozen=True, slots=True)
class FleetChanged:
    """Other brokers may have recorded anything unheard: read the fleet again."""

    time: datetime


Change: TypeAlias = HostChanged | CertificateChanged | CertificateRemoved | CertificateRecorded | FleetChanged


_ALL: Final = ("", "")
"""In the place of a host and a certificate's name."""


class Watcher:
    """One watcher's changes that were not told yet."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        """`wanted` says whether a host is watched."""
        self._wanted = wanted
        self._changes: dict[tuple[str, str], Change] = {}
        self._some = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._changes)

    def put(self, key: tuple[str, str], change: Change) -> None:
        """Add a change, in the place of an older one of the same."""
        if self._wanted(key[0]):
            self._changes.pop(key, None)  # it comes last, so that changes are told in the order they were made
            self._changes[key] = change
            self._some.set()

    def will_read(self, host: str) -> bool:
        """Whether the host with all its certificates is still to be read for it."""
        return (host, "") in self._changes or _ALL in self._changes

    def put_all(self, change: FleetChanged) -> None:
        """Add that all is to be read, in the place of everything."""
        self._changes = {_ALL: change}
        self._some.set()

    async def next_change(self) -> Change | None:
        """The oldest change that was not told yet; waits for one. None when there will be no more."""
        while not self._changes:
            if self._closed:
                return None
            self._some.clear()
            await self._some.wait()
        return self._changes.pop(next(iter(self._changes)))

    def close(self) -> None:
        """There will be no more changes."""
        self._closed = True
        self._some.set()


class FleetListener(Protocol):
    """Hears at once what happens to the hosts of this broker, and that something has happened to those of others."""

    def came(self, host: str) -> None:
        """The host has its stream here now."""
        ...

    def left(self, host: str) -> None:
        """The host has its stream here no more."""
        ...

    def reported(self, host: str, certificate: CertificateStatus) -> None:
        """The host has reported a certificate, which is durable."""
        ...

    def removed(self, host: str, name: str) -> None:
        """The host no longer has a certificate."""
        ...

    def revoked(self, certificate: RevokedCertificate) -> None:
        """A certificate of a host or a service was revoked, by whomever."""
        ...

    def recorded_elsewhere(self, host: str) -> None:
        """Another broker has recorded something of the host: read it."""
        ...

    def brokers_changed(self, broker_ids: Collection[str]) -> None:
        """These brokers have come or gone: where a broker is, its hosts are."""
        ...

    def missed(self) -> None:
        """Other brokers may have recorded anything: read the fleet."""
        ...


class Watchers:
    """All watchers of one broker, `most` of them at once."""

    def __init__(self, most: int, meter: Meter) -> None:
        self._most = most
        self._meter = meter
        self._watchers: set[Watcher] = set()
        self._listeners: list[FleetListener] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._watchers)

    @contextmanager
    def watching(self, wanted: Callable[[str], bool]) -> Iterator[Watcher]:
        """A watcher of the hosts that `wanted` says yes to: told of all that changes during the block.

        Raises:
            RefusalError: RATE_LIMITED, there are many already; DRAINING.
        """
        if self._closed:
            raise draining()
        if len(self._watchers) >= self._most:
            violation = Violation("renewal_watchers", f"{self._most} at once")
            message = "too many clients watch the fleet; end one of them first"
            raise RefusalError(Reason.RATE_LIMITED, message, violations=[violation])
        watcher = Watcher(wanted)
        self._watchers.add(watcher)
        self._meter.level(metrics.WATCHERS, len(self._watchers))
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._meter.level(metrics.WATCHERS, len(self._watchers))

    def listen(self, listener: FleetListener) -> None:
        """Tell `listener` of all that is told here, at once and before watchers."""
        self._listeners.append(listener)

    def host_changed(self, host: str, time: datetime) -> None:
        """A host answered a directive, or the health of a certificate changed."""
        for watcher in self._watchers:
            watcher.put((host, ""), HostChanged(host, time))

    def host_came(self, host: str, time: datetime) -> None:
        """A host has its stream here now."""
        self._listen_to(lambda listener: listener.came(host))
        self.host_changed(host, time)

    def host_left(self, host: str, time: datetime) -> None:
        """A host has its stream here no more."""
        self._listen_to(lambda listener: listener.left(host))
        self.host_changed(host, time)

    def host_elsewhere(self, host: str, time: datetime) -> None:
        """A host has come to another broker, has left it, or has answered it."""
        self._listen_to(lambda listener: listener.recorded_elsewhere(host))
        self.host_changed(host, time)

    def certificate_revoked(self, revoked: RevokedCertificate, time: datetime) -> None:
        """A certificate of a host was revoked: it is in use, as long as it is."""
        self._listen_to(lambda listener: listener.revoked(revoked))
        self.host_changed(revoked.host, time)

    def certificate_changed(self, host: str, certificate: CertificateStatus, time: datetime) -> None:
        """A host has reported a certificate."""
        self._listen_to(lambda listener: listener.reported(host, certificate))
        for watcher in self._watchers:
            watcher.put((host, certificate.name), CertificateChanged(host, certificate, time))

    def certificate_removed(self, host: str, name: str, time: datetime) -> None:
        """A host no longer has a certificate."""
        self._listen_to(lambda listener: listener.removed(host, name))
        for watcher in self._watchers:
            watcher.put((host, name), CertificateRemoved(host, name, time))

    def recorded_elsewhere(self, host: str, names: Sequence[str], time: datetime) -> None:
        """Another broker has recorded what a host reports: of the certificates of these names, or of any."""
        self._listen_to(lambda listener: listener.recorded_elsewhere(host))
        if not names:
            self.host_changed(host, time)
        for watcher in self._watchers:
            if not watcher.will_read(host):
                for name in names:
                    watcher.put((host, name), CertificateRecorded(host, name, time))

    def fleet_changed(self, time: datetime) -> None:
        """Anything may have changed at other brokers."""
        self._listen_to(lambda listener: listener.missed())
        self._all_changed(time)

    def brokers_changed(self, broker_ids: Collection[str], time: datetime) -> None:
        """These brokers have come or gone: where a broker is, its hosts are."""
        self._listen_to(lambda listener: listener.brokers_changed(broker_ids))
        self._all_changed(time)

    def _all_changed(self, time: datetime) -> None:
        for watcher in self._watchers:
            watcher.put_all(FleetChanged(time))

    def _listen_to(self, tell: Callable[[FleetListener], None]) -> None:
        """Tell the listeners: a bug of one must not keep what a host said from being taken, which is durable by now."""
        for listener in self._listeners:
            try:
                tell(listener)
            except Exception:
                _logger.exception("could not take in what happened to a host; reading the fleet anew")
                listener.missed()

    def close(self) -> None:
        """Let all of them end, and take no more."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()
