"""For the index: which CA issued what hosts use, and for which key; and what services were issued. Nobody tells it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Final

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.fleet.kept import KeptHosts
from certplane.broker.fleet.model import IssuedCertificate
from certplane.broker.fleet.places import ServicePlaces
from certplane.broker.fleet.ports import IssuedCertificates
from certplane.broker.model import IdentityKind
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_PAGE: Final = 64
"""Hosts whose certificates are looked for at once."""
_SERVICES_AGE: Final = timedelta(seconds=10)
"""What services have is read each minute, and for whoever asks what is older than this."""


class IndexedIssues:
    """Completes what the index keeps."""

    def __init__(
        self,
        issued: IssuedCertificates,
        services: ServicePlaces,
        kept: KeptHosts,
        judge: Callable[[IndexedHost], None],
        clock: Clock,
    ) -> None:
        """Nothing is read yet; `services` says who watches, and `judge` keeps a service that is another one now."""
        self._issued, self._services, self._kept, self._judge, self._clock = issued, services, kept, judge, clock
        self._unknown: dict[str, None] = {}
        """Hosts that use a certificate of which it isn't known who issued it."""
        self._services_stale = True
        self._services_age = float("-inf")
        """From when on whoever asks has what services have read again; monotonic."""

    def note_host(self, name: str, certificates: Iterable[IndexedCertificate]) -> None:
        """These are in use on a host."""
        if any(each.certificate_id and not each.issuer for each in certificates):
            self._unknown[name] = None

    def services_changed(self) -> None:
        """Services may have been issued something, watch where they didn't, or be others."""
        self._services_stale = True

    def is_stale(self) -> bool:
        """Whether there is something to read for who asks now."""
        self._services_stale |= self._clock.monotonic() >= self._services_age
        return self._services_stale or bool(self._unknown)

    async def read(self, services: Collection[str]) -> None:
        """Read what isn't known; of the services of these names what they have.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        while self._unknown:
            await self._find(tuple(islice(self._unknown, _PAGE)))
        if self._services_stale:
            await self._read_services(services)

    async def _find(self, hosts: Collection[str]) -> None:
        """What isn't found isn't looked for again before the host reports it anew."""
        for name in hosts:
            self._unknown.pop(name, None)
        ids = {
            each.certificate_id
            for name in hosts
            for each in self._kept.known(name).certificates
            if each.certificate_id and not each.issuer
        }
        try:
            found = {each.certificate_id: each for each in await self._issued.find_issued(ids)} if ids else {}
        except RefusalError:
            self._unknown.update(dict.fromkeys(hosts))
            raise
        for name in hosts:
            if (host := self._kept.hosts.get(name)) is not None:
                certificates = tuple(self._kept.issued_by(each, name, found) for each in host.certificates)
                self._kept.put(replace(host, certificates=certificates), judged=False)

    async def _read_services(self, names: Collection[str]) -> None:
        self._services_stale = False
        self._services_age = self._clock.monotonic() + _SERVICES_AGE.total_seconds()
        try:
            rows = await self._issued.issued_to(names, self._clock.now()) if names else ()
            places = await self._services.find(names) if names else {}
        except RefusalError:
            self._services_stale = True
            raise
        found: dict[str, list[IssuedCertificate]] = defaultdict(list, {name: [] for name in places})
        for each in rows:
            found[each.identity].append(each)
        services = [name for name, host in self._kept.hosts.items() if host.kind is IdentityKind.SERVICE]
        for name in services:
            if name not in found:
                self._kept.drop(name)
        for name, certificates in found.items():
            self._judge(self._kept.service(name, certificates, places.get(name)))
