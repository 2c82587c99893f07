"""One rollout in memory while a broker runs it: its certificates, and what is known of each.

What is known is gathered for hosts of which something has changed, and now and then for all, since time and policy
change some of it alone. For the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Final

from certplane.broker.fleet.index import FleetIndex, IndexedCertificate
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.model import CertificateRecord
from certplane.broker.ports import PolicySource
from certplane.broker.rollouts.facts import Certificates, ItemView, Successor, Successors, facts_of, held_certificate
from certplane.broker.rollouts.model import ItemFacts, ItemState, Rollout, RolloutItem
from certplane.fleet_report.model import CertificateState
from certplane.runtime.clock import Clock

_TOGETHER: Final = 64
"""Hosts that are looked at before others get their turn, and are read about at once: a millisecond or two."""
_ILL: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})
_SETTLED: Final = frozenset({ItemState.DONE, ItemState.SKIPPED})
_LONGEST: Final = 500
"""Characters of what a host says."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where it is read what is known."""

    index: FleetIndex
    fleet: FleetStore
    successors: Successors
    certificates: Certificates
    policy: PolicySource
    clock: Clock


class RolloutInHand:
    """A rollout that this broker runs.

    Attributes:
        rollout: As it is durable, as far as is known here.
        items: Its certificates, by the id of what is replaced.
        facts: What is known of each.
        next_time: When time alone may change something; None if it can't.
        is_due: Whether it is to be looked at, whatever the time.
        keys_are_blocked: Whether this broker has seen to the keys that it replaces.
    """

    def __init__(self, rollout: Rollout, items: Iterable[RolloutItem], sources: Sources) -> None:
        """Nothing is known yet; all hosts are to be looked at."""
        self._sources = sources
        self._successors: dict[str, Successor] = {}
        self._revoke_times: dict[str, datetime] = {}
        self.facts: dict[str, ItemFacts] = {}
        self.next_time: datetime | None = None
        self.is_due = True
        self.keys_are_blocked = False
        self.take(rollout, items)

    def take(self, rollout: Rollout, items: Iterable[RolloutItem]) -> None:
        """Take what is durable in the place of what was; what is known stays known."""
        self.rollout = rollout
        self.items = {item.certificate_id: item for item in items}
        self._of_host: defaultdict[str, list[str]] = defaultdict(list)
        for item in self.items.values():
            self._of_host[item.host].append(item.certificate_id)
        self._changed = dict.fromkeys(self._of_host)
        self.is_due = True

    def put(self, rollout: Rollout, items: Iterable[RolloutItem]) -> None:
        """Keep what was just written."""
        self.rollout = rollout
        self.items.update((item.certificate_id, item) for item in items)

    def host_changed(self, host: str) -> None:
        """Something of a host is another."""
        if host in self._of_host:
            self._changed[host] = None
            self.is_due = True

    def all_changed(self) -> None:
        """Anything may be: the policy, or what time has made of it."""
        self._changed = dict.fromkeys(self._of_host)
        self.is_due = True

    def revoked(self, certificate_id: str, time: datetime) -> None:
        """One of the certificates was revoked, by whomever."""
        item = self.items.get(certificate_id)
        if item is not None and certificate_id not in self._revoke_times:
            self._revoke_times[certificate_id] = time
            self.host_changed(item.host)

    async def gather(self, overruled: Mapping[tuple[str, str], str]) -> None:
        """Find out what is known of the hosts that have changed; `overruled` are what newer rollouts have (`overrule`).

        Raises:
            RefusalError: STORE_UNAVAILABLE; what wasn't found out is, the next time.
        """
        while some := [*islice(self._changed, _TOGETHER)]:
            for host in some:
                del self._changed[host]
            try:
                await self._gather(some, overruled)
            except BaseException:
                self._changed.update(dict.fromkeys(some))
                raise
            await asyncio.sleep(0)

    async def _gather(self, hosts: Sequence[str], overruled: Mapping[tuple[str, str], str]) -> None:
        items = [self.items[certificate_id] for host in hosts for certificate_id in self._of_host[host]]
        await self._find_successors(items)
        await self._find_newer(items)
        await self._find_strangers(items)
        words = await self._words_of(items)
        policy, now = self._sources.policy.current, self._sources.clock.now()
        for item in items:
            view = ItemView(
                item,
                self.rollout.spec,
                self._sources.index.hosts.get(item.host),
                self._successors.get(item.certificate_id),
                self._revoke_times.get(item.certificate_id),
                overruled.get((item.rollout_id, item.certificate_id), ""),
                words.get(item.host, {}),
            )
            self.facts[item.certificate_id] = facts_of(view, policy, now)

    async def _find_successors(self, items: Iterable[RolloutItem]) -> None:
        wanted = [
            item.certificate_id
            for item in items
            if item.certificate_id not in self._successors and item.state is not ItemState.SKIPPED
        ]
        if wanted:
            for found in await self._sources.successors.successors_of(wanted):
                self._successors[found.replaced_id] = found

    async def _find_newer(self, items: Iterable[RolloutItem]) -> None:
        """What hosts hold that isn't the successor known: of an order made anew, or in the place of that successor.

        What fails, or is released, is what the host has.
        """
        wanted = {}
        for item in items:
            held, known = self._held(item), self._successors.get(item.certificate_id)
            if held is None or known is None or item.state in _SETTLED:
                continue
            if held.issued_serial_number not in {"", held.serial_number, known.serial_number}:
                wanted[item.certificate_id] = (known, held.issued_serial_number)
        if not wanted:
            return
        ids = {*wanted, *(known.certificate_id for known, _ in wanted.values())}
        found = {each.replaced_id: each for each in await self._sources.successors.successors_of(sorted(ids))}
        for certificate_id, (known, serial_number) in wanted.items():
            for new in (found.get(certificate_id), found.get(known.certificate_id)):
                if new is not None and new.serial_number == serial_number:
                    same_key = new.same_key and (new.replaced_id == certificate_id or known.same_key)
                    self._successors[certificate_id] = replace(new, replaced_id=certificate_id, same_key=same_key)

    async def _find_strangers(self, items: Iterable[RolloutItem]) -> None:
        """What hosts use that no order names as the successor: of a host that lost its state, or has renewed again."""
        for item in items:
            held, known = self._held(item), self._successors.get(item.certificate_id)
            used = "" if held is None else held.certificate_id
            if not used or used in (item.certificate_id, "" if known is None else known.certificate_id):
                continue
            old = await self._sources.certificates.get_certificate(item.certificate_id)
            new = await self._sources.certificates.get_certificate(used)
            if old is not None and new is not None and _follows(new, old):
                same_key = new.public_key_sha256 == old.public_key_sha256
                self._successors[item.certificate_id] = Successor(
                    item.certificate_id, used, new.serial_number, new.issuer, same_key
                )

    async def _words_of(self, items: Iterable[RolloutItem]) -> Mapping[str, Mapping[str, str]]:
        """What hosts say of certificates that fail, by host and name: the index keeps no texts."""
        ill = {item.host for item in items if (held := self._held(item)) is not None and held.state in _ILL}
        if not ill:
            return {}
        return {
            record.host: {
                status.name: f"{status.failed_step or status.state}: {status.last_error}"[:_LONGEST]
                for status in record.certificates
                if status.last_error
            }
            for record in await self._sources.fleet.list_hosts(hosts=sorted(ill))
        }

    def _held(self, item: RolloutItem) -> IndexedCertificate | None:
        host = self._sources.index.hosts.get(item.host)
        return None if host is None else held_certificate(item, host, self._successors.get(item.certificate_id))


def _follows(new: CertificateRecord, old: CertificateRecord) -> bool:
    return (new.identity, new.profile) == (old.identity, old.profile) and new.create_time > old.create_time
