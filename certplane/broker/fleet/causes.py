"""One cause or many: certificates of the whole fleet by what causes their health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from certplane.broker.fleet.index import CauseGroup, IndexedCertificate, IndexedHost, Picked
from certplane.runtime.health import HealthWord

_NAMED: Final = 5
"""Hosts that a group names."""


@dataclass(slots=True)
class _Group:
    """One that is being gathered; hosts come by name."""

    first: IndexedCertificate
    example: tuple[str, str]
    count: int = 0
    host_count: int = 0
    last_host: str = ""
    hosts: list[str] = field(default_factory=list)
    since: datetime | None = None
    next_attempt_time: datetime | None = None

    def add(self, host: str, certificate: IndexedCertificate) -> None:
        self.count += 1
        if host != self.last_host:
            self.last_host = host
            self.host_count += 1
            if len(self.hosts) < _NAMED:
                self.hosts.append(host)
        self.since = _sooner(self.since, certificate.since)
        self.next_attempt_time = _sooner(self.next_attempt_time, certificate.next_attempt_time)

    def done(self) -> CauseGroup:
        return CauseGroup(
            health=self.first.health,
            cause=self.first.cause,
            actor=self.first.actor,
            certificate_count=self.count,
            host_count=self.host_count,
            hosts=tuple(self.hosts),
            example=self.example,
            since=self.since,
            next_attempt_time=self.next_attempt_time,
        )


async def cause_groups(hosts: AsyncIterator[IndexedHost], picked: Picked | None = None) -> list[CauseGroup]:
    """What is not OK, by health and cause: the worst health first, of one health the most certificates first.

    Args:
        hosts: By name.
        picked: Which certificates; None for all.
    """
    groups: dict[tuple[HealthWord, str], _Group] = {}
    async for host in hosts:
        for each in host.certificates if picked is None else picked(host):
            if each.health is HealthWord.OK:
                continue
            key = each.health, each.cause
            group = groups.get(key)
            if group is None:
                group = groups[key] = _Group(each, (host.name, each.name))
            group.add(host.name, each)
    found = [group.done() for group in groups.values()]
    return sorted(found, key=lambda each: (each.health.rank, -each.certificate_count, each.cause))


def _sooner(one: datetime | None, other: datetime | None) -> datetime | None:
    return other if one is None else one if other is None else min(one, other)
