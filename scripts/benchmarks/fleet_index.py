"""What the index of the fleet takes: memory, the first reading, a policy that is loaded anew, a summary, and a page.

Over a SQLite store with 10,000 hosts of four certificates each, a tenth of them in trouble; no network. While each is
done a task looks every two milliseconds how much the loop has worked since: the most is what other calls waited.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import psutil

from benchmarks.held import Timed, timed
from benchmarks.result import Figure, figure
from certplane.broker.fleet.circumstances import HostCircumstances
from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.indexing import MemoryIndex
from certplane.broker.fleet.model import HostStream, StreamBroker
from certplane.broker.fleet.places import HostPlaces
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.summaries import FleetSummaries
from certplane.broker.fleet.view import FleetView
from certplane.broker.members.ports import NoOtherBrokers
from certplane.broker.model import Grant, IdentityKind, Profile
from certplane.broker.policy.document import PolicyDocument
from certplane.broker.ports import NullMeter, Policy, PolicySource
from certplane.broker.services.fleet_lists import FleetLists
from certplane.broker.services.summary_convert import summary_message
from certplane.broker.standing_rules import IncidentRules, RolloutRules
from certplane.broker.store import Stores, open_stores
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalStep,
    Report,
)
from certplane.runtime import garbage
from certplane.runtime.clock import SystemClock
from certplane.runtime.health import HealthWord
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import renewal_pb2

HOSTS: Final = 10_000
CERTIFICATES: Final = 4
_DAY: Final = timedelta(days=1)
_CLOCK: Final = SystemClock()
_RULES: Final = (RolloutRules(), IncidentRules())


class _Policies(PolicySource):
    """`PolicySource` whose policy the benchmark loads."""

    current: Policy = PolicyDocument("none", "none", {}, {}, expanded={}, rules=_RULES)


def measure(folder: Path, *, rounds: int, share: float) -> list[Figure]:
    """The figures; `share` is of the 10,000 hosts."""
    garbage.seldom()
    return asyncio.run(_measure(folder, rounds, int(HOSTS * share)))


async def _measure(folder: Path, rounds: int, hosts: int) -> list[Figure]:
    policies = _Policies()
    policies.current = _policy(hosts, ())
    async with open_stores(driver="sqlite", path=folder / "fleet.db", audit=None, clock=_CLOCK) as stores:
        await _fill(stores, hosts)
        index, view = _parts(stores, policies)
        lists, summaries_of = FleetLists(view, index, _CLOCK), _summaries(stores, index, view)
        gc.collect()
        before = psutil.Process().memory_info().rss
        first = await timed(index.settled)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        garbage.settled()
        reloads, summaries, causes, pages = [], [], [], []
        for turn in range(rounds):
            policies.current = _policy(hosts, (f"new{turn}.certplane.test",))
            reloads.append(await timed(index.look))
            assert index.counts()[HealthWord.MISMATCHED] > hosts * CERTIFICATES / 2
            summaries.append(await timed(lambda: _sum_up(summaries_of)))
            causes.append(await timed(index.causes))
            for order in (pb.FLEET_ORDER_NAME, pb.FLEET_ORDER_HEALTH):
                request = pb.ListHostsRequest(
                    order_by=order, filter=pb.FleetFilter(healths=[renewal_pb2.HEALTH_MISMATCHED])
                )
                pages.append(await timed(functools.partial(lists.hosts, request)))
    number = hosts * CERTIFICATES
    held = max(each.held for each in (*reloads, *summaries, *causes, *pages)) * 1000
    return [
        figure(f"index of {number} certificates, bytes each, their hosts' included", [grown / number], "<= 1500"),
        figure("index, first reading, s", [first.seconds], "least"),
        figure(f"health of {number} certificates after a policy reload, s", _seconds(reloads), "<= 1"),
        figure(f"summary of {hosts} hosts, s", _seconds(summaries), "<= 0.2"),
        figure(f"causes of {number} certificates, all but few not OK, s", _seconds(causes), "<= 0.2"),
        figure(f"page of {hosts} hosts by health, its 30 or so hosts read, s", _seconds(pages), "<= 0.1"),
        figure("index, longest hold of the loop, ms", [held, first.held * 1000], "<= 20"),
    ]


async def _sum_up(summaries: FleetSummaries) -> bytes:
    """All that an operator's `certplanectl summary` asks of the broker."""
    summary = await summaries.read(FleetFilter(), _DAY)
    return summary_message(summary).SerializeToString()


def _seconds(timed: Sequence[Timed]) -> list[float]:
    return [each.seconds for each in timed]


def _policy(hosts: int, more: tuple[str, ...]) -> PolicyDocument:
    """One that gives each host four profiles; with `more` in each of them, nobody's configuration fits any more."""
    names = [f"p{number}" for number in range(CERTIFICATES)]
    profiles = {
        name: Profile(name, "multi_san", tuple(sorted((f"{name}.certplane.test", *more))), f"{name} {more}")
        for name in names
    }
    grants = [Grant(_name(n), IdentityKind.HOST, f"host{n}", profiles=tuple(names)) for n in range(hosts)]
    holders = {grant.name: grant for grant in grants}
    return PolicyDocument("policy.yml", str(more), profiles, holders, expanded={}, rules=_RULES)


def _name(number: int) -> str:
    return f"host{number:06d}.certplane.test"


async def _fill(stores: Stores, hosts: int) -> None:
    now = _CLOCK.now()

    async def fill(number: int) -> None:
        stream = HostStream(_name(number), HostFacts("1.0.0"), "1f", now + _DAY, "192.0.2.1", now, now, now)
        names = [f"p{each}" for each in range(CERTIFICATES)]
        reports = [Report(1 + each, _status(number, name)) for each, name in enumerate(names)]
        await stores.fleet.record_reports(stream.host, "e", reports, names=names, stream=stream)

    for start in range(0, hosts, 500):
        await asyncio.gather(*map(fill, range(start, min(start + 500, hosts))))


def _status(number: int, name: str) -> CertificateStatus:
    now = _CLOCK.now()
    held = HeldCertificate(
        f"{number:020x}{name[1:]:0>14}", now - 10 * _DAY, now + 80 * _DAY, f"0193-{number:020d}-{name}", 1
    )
    fields = {"issued": held, "installed": held, "served": held, "renew_time": now + 50 * _DAY, "update_time": now}
    if number % 10 == 0:
        fields |= {"failed_step": RenewalStep.REQUEST, "request_failures": 2, "next_attempt_time": now + _DAY}
        fields |= {"last_error": f"DNS_UNAVAILABLE: ns{number % 7}.example.org lacks the record"}
    state = CertificateState.FAILED if number % 10 == 0 else CertificateState.SERVING
    return CertificateStatus(name, state, name, (f"{name}.certplane.test",), **fields)


def _summaries(stores: Stores, index: MemoryIndex, view: FleetView) -> FleetSummaries:
    """Of a broker without orders."""

    async def count() -> tuple[int, int]:
        return await stores.order_listing.count_open(), 0

    orders: Any = SimpleNamespace(count_open_and_troubled=count, issuer_trouble=lambda _name: None)
    return FleetSummaries(index, view, audit=stores.audit_reader, orders=orders, issuers=["acme"], clock=_CLOCK)


def _parts(stores: Stores, policies: PolicySource) -> tuple[MemoryIndex, FleetView]:
    """The index, and the view that reads what it picks; no host has a stream."""
    registry = StreamRegistry(NullMeter())
    places = HostPlaces(registry, StreamBroker("bench", "bench", "bench:1"), NoOtherBrokers())
    circumstances = HostCircumstances(policies, stores.identities, stores.deny_list, _CLOCK)
    index = MemoryIndex(
        store=stores.fleet,
        issued=stores.issued,
        places=places,
        policy=policies,
        circumstances=circumstances,
        clock=_CLOCK,
        settings=StreamSettings(),
        health_changed=lambda _host: None,
    )
    hub: Any = SimpleNamespace(registry=registry)
    view = FleetView(
        hub=hub,
        store=stores.fleet,
        plans=stores.renewal_plans,
        policy=policies,
        identities=stores.identities,
        circumstances=circumstances,
        places=places,
        index=index,
        clock=_CLOCK,
    )
    return index, view
