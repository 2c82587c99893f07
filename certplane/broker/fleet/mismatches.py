"""Which certificates that hosts ask for a policy would refuse, by what the hosts last reported of their agent.yml."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

from certplane.broker.fleet.circumstances import refusal_of
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.policy.planned import Mismatch
from certplane.broker.ports import Policy

_PAGE: Final = 100


async def find_mismatches(store: FleetStore, policy: Policy, in_force: Policy) -> AsyncIterator[Mismatch]:
    """What `policy` would refuse, host by host, of whichever broker.

    Raises:
        RefusalError: STORE_UNAVAILABLE.
    """
    after = ""
    while records := await store.list_hosts(after=after, limit=_PAGE):
        for record in records:
            for mismatch in mismatches_of(record, policy, in_force):
                yield mismatch
        after = records[-1].host


def mismatches_of(record: HostRecord, policy: Policy, in_force: Policy) -> Iterator[Mismatch]:
    """What `policy` would refuse one host. A certificate without profile or names was never asked for."""
    for status in record.certificates:
        if not status.profile or not status.dns_names:
            continue
        refusal = refusal_of(policy, record.host, status.profile, status.dns_names)
        if refusal is None:
            continue
        now = refusal_of(in_force, record.host, status.profile, status.dns_names)
        yield Mismatch(record.host, status.name, status.profile, refusal.reason, refusal.message, now is not None)
