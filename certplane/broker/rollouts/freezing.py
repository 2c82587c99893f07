"""A rollout before it is created: which certificates its selection is now, in which rings, and what is in its way.

What is decided here is frozen when it is created: certificates that come later are in no rollout.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from certplane.broker.budget.forecast import Forecast
from certplane.broker.fleet.index import FleetIndex, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.broker.ports import Policy
from certplane.broker.renewal.model import InForce, Selection
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.broker.rollouts.model import ONE_RING, RolloutAction, RolloutItem, RolloutSpec
from certplane.broker.rollouts.rings import Assignment, RingHost, assign
from certplane.broker.rollouts.spec import warnings
from certplane.errors import Reason, RefusalError, Violation
from certplane.runtime.text import counted

_TOGETHER: Final = 128
"""Hosts whose certificates are read at once."""
_NAMED: Final = 5


ForecastOf = Callable[[Sequence[RolloutItem], str], Awaitable[Forecast | None]]
"""When the certificates would be issued, at their profiles' issuers or at this one; None if that can't be told."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a rollout would be.

    Attributes:
        spec: What it does.
        items: Its certificates, by host; of no rollout yet.
        found: Which hosts its rings have.
        forecast: When all would be issued.
    """

    spec: RolloutSpec
    items: tuple[RolloutItem, ...]
    found: Assignment
    forecast: Forecast | None = None

    @property
    def hosts(self) -> Sequence[str]:
        """Those that have a certificate in it, sorted."""
        return sorted({item.host for item in self.items})


class Freezing:
    """Freezes selections."""

    def __init__(self, plans: RenewalPlanStore, index: FleetIndex, forecast: ForecastOf) -> None:
        self._plans = plans
        self._index = index
        self._forecast = forecast

    async def freeze(self, spec: RolloutSpec, policy: Policy, now: datetime) -> Frozen:
        """Find out what the selection is now.

        Raises:
            RefusalError: REQUEST_INVALID, it selects no certificate in force; STORE_UNAVAILABLE.
        """
        await self._index.settled()
        items: list[RolloutItem] = []
        selected = {one.certificate_id: one.host for one in await self._plans.select(spec.selection, now)}
        if not selected:
            raise nothing_selected(spec.selection)
        hosts = sorted({*selected.values()})
        for start in range(0, len(hosts), _TOGETHER):
            some = hosts[start : start + _TOGETHER]
            found = await self._plans.in_force_of(some, now)
            items += [self._item(one) for one in found if one.certificate_id in selected]
            await asyncio.sleep(0)
        return await self.in_rings(spec, items, policy)

    async def in_rings(self, spec: RolloutSpec, items: Sequence[RolloutItem], policy: Policy) -> Frozen:
        """Put certificates into the rings of a spec, and forecast when they would be issued."""
        names: dict[str, set[str]] = {}
        for item in items:
            names.setdefault(item.host, set()).update(item.dns_names)
        hosts = []
        for name, of in names.items():
            grant = policy.find_grant(name)
            hosts.append(RingHost(name, {} if grant is None else grant.labels, tuple(sorted(of))))
        found = assign(spec.rings or ONE_RING, hosts)
        placed = tuple(replace(item, ring=found.ring_of.get(item.host, 0)) for item in items)
        issuer = spec.issuer if spec.action is RolloutAction.MOVE else ""
        return Frozen(spec, placed, found, await self._forecast(placed, issuer))

    def _item(self, one: InForce) -> RolloutItem:
        host = self._index.hosts.get(one.host)
        certificates = () if host is None else host.certificates
        is_host = host is not None and host.kind is IdentityKind.HOST
        name = next((each.name for each in certificates if each.certificate_id == one.certificate_id), "")
        return RolloutItem(
            rollout_id="",
            certificate_id=one.certificate_id,
            host=one.host,
            profile=one.profile,
            issuer=one.issuer,
            dns_names=one.dns_names,
            not_after=one.not_after,
            ring=0,
            certificate_name=name if is_host else "",
        )


def check_issuer(frozen: Frozen, policy: Policy, issuers: Sequence[str]) -> None:
    """Look at where a MOVE goes to.

    Args:
        frozen: What it would be.
        policy: In force.
        issuers: Those of the configuration, in its order: a profile without a list of its own has the first.

    Raises:
        RefusalError: REQUEST_INVALID, there is no such issuer, or a profile doesn't let it issue.
    """
    issuer = frozen.spec.issuer
    if frozen.spec.action is not RolloutAction.MOVE:
        return
    problem = ""
    if issuer not in issuers:
        problem = f"is {issuer!r}, which the broker's configuration doesn't have: it has {', '.join(sorted(issuers))}"
    else:
        profiles = {item.profile for item in frozen.items}
        known = filter(None, (policy.find_profile(name) for name in sorted(profiles)))
        shut = [profile.name for profile in known if issuer not in (profile.issuers or issuers[:1])]
        if shut:
            problem = f"is {issuer}, which profiles don't let issue: add it to acme.issuers of {', '.join(shut)}"
    if problem:
        violation = Violation("spec.issuer", problem)
        raise RefusalError(Reason.REQUEST_INVALID, f"spec.issuer {problem}", violations=[violation])


def nothing_selected(selection: Selection) -> RefusalError:
    """Why there would be nothing to do."""
    problem = f"selects no certificate in force ({selection}): `certplanectl certs` shows those that there are"
    message = f"the selection {problem}"
    return RefusalError(Reason.REQUEST_INVALID, message, violations=[Violation("spec.selection", problem)])


def all_warnings(frozen: Frozen, policy: Policy, hosts: Sequence[IndexedHost], others: Counter[str]) -> list[str]:
    """What an operator should know before, for people.

    Args:
        frozen: What it would be.
        policy: In force.
        hosts: Those of it that are known.
        others: How many of its certificates other rollouts have, that are under way.
    """
    found = [*warnings(frozen.spec, frozen.found)]
    for rollout_id, count in others.items():
        found.append(
            f"the rollout {rollout_id} has {counted(count, 'certificate')} of it: this one, the newer, takes over"
        )
    found += _of_profiles(frozen, policy)
    blocked = [host.name for host in hosts if host.blocked]
    if blocked:
        found.append(
            f"passed over, since they get no certificates: {_named(blocked)} ({counted(len(blocked), 'host')})"
        )
    services = [host.name for host in hosts if host.kind is IdentityKind.SERVICE]
    if services:
        found.append(
            "services can't be told and renew when they ask; what they had is revoked by `certplanectl rollout finish` "
            f"alone: {_named(services)} ({counted(len(services), 'service')})"
        )
    deadline, forecast = frozen.spec.deadline, frozen.forecast
    if forecast is not None and forecast.never_count:
        never = counted(forecast.never_count, "certificate")
        found.append(f"no new certificate within 90 days, by the CA's limits, for {never}: {forecast.bound_by}")
    if deadline is not None and forecast is not None and forecast.last_order_time is not None:
        late = forecast.last_order_time - deadline
        if late.total_seconds() > 0:
            found.append(
                f"the deadline can't be kept: the last certificate is issued {late} after it, by the CA's limits"
            )
    return found


def _of_profiles(frozen: Frozen, policy: Policy) -> list[str]:
    gone: Counter[str] = Counter()
    for item in frozen.items:
        grant = policy.find_grant(item.host)
        if grant is None or item.profile not in grant.profiles:
            gone[item.profile] += 1
    return [
        f"the policy no longer gives the profile {name} to the holders of {counted(count, 'certificate')}: passed over"
        for name, count in gone.items()
    ]


def _named(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
