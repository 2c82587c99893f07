"""Rollouts over hosts that a test moves by hand: what they hold, what was issued, what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from typing_extensions import override

from certplane.broker.events import AuditEvent, AuditEventType, AuditTrail
from certplane.broker.fleet.index import CauseGroup, FleetIndex, IndexedCertificate, IndexedHost, Picked
from certplane.broker.fleet.model import HostRecord
from certplane.broker.members.ports import LastingLease
from certplane.broker.model import (
    Caller,
    CertificateRecord,
    Grant,
    IdentityKind,
    Profile,
    RevocationReason,
)
from certplane.broker.renewal.model import HostActivation, InForce, RenewalPlan, Selected, Selection
from certplane.broker.rollouts.desk import RolloutDesk
from certplane.broker.rollouts.facts import Certificates, Successor, Successors
from certplane.broker.rollouts.freezing import Freezing
from certplane.broker.rollouts.in_hand import Sources
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.model import ItemState, RingSpec, Rollout, RolloutItem, RolloutSpec, RolloutState
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace, RolloutStore
from certplane.broker.rollouts.revoking import ReplacedRevocations
from certplane.broker.rollouts.runner import RolloutRunner, RunnerPorts
from certplane.broker.rollouts.watching import RolloutWatchers
from certplane.broker.standing_rules import IncidentRules, RolloutRules
from certplane.errors import RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus
from certplane.runtime.health import HealthWord
from certplane.runtime.pool import BlockingPool
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
TWO_RINGS = (RingSpec("first", ("ring=first",)), RingSpec("rest", rest=True))


def operator(name: str = "alice.test", *roles: str) -> Caller:
    """An operator with these roles; without any an admin."""
    now = ManualClock().now()
    return Caller(name, IdentityKind.OPERATOR, name, (), roles or ("admin",), "a1", "CN=CA", "admin", now + DAY)


class KeptRollouts(RolloutStore):
    """`RolloutStore` in memory."""

    def __init__(self) -> None:
        self.rollouts: dict[str, Rollout] = {}
        self.kept: dict[str, dict[str, RolloutItem]] = {}
        self.events: list[AuditEvent] = []
        self.errors: list[Exception] = []
        """What the next writes raise."""
        self.overtaken: Callable[[], None] | None = None
        """Another broker's write, right before the next one."""

    @override
    async def create(
        self, rollout: Rollout, items: Sequence[RolloutItem], events: Sequence[AuditEvent] = ()
    ) -> Rollout:
        found = await self.find(rollout.created_by, rollout.request_id)
        if found is not None:
            return found
        self.rollouts[rollout.rollout_id] = rollout
        self.kept[rollout.rollout_id] = {item.certificate_id: item for item in items}
        self.events += events
        return rollout

    @override
    async def save(
        self, before: Rollout, after: Rollout, items: Sequence[RolloutItem] = (), events: Sequence[AuditEvent] = ()
    ) -> bool:
        await asyncio.sleep(0)
        if self.overtaken is not None:
            self.overtaken()
            self.overtaken = None
        if self.errors:
            raise self.errors.pop(0)
        if self.rollouts[before.rollout_id].version != before.version:
            return False
        assert after.version == before.version + 1
        self.rollouts[after.rollout_id] = after
        self.kept[after.rollout_id].update((item.certificate_id, item) for item in items)
        self.events += events
        return True

    @override
    async def get(self, rollout_id: str) -> Rollout | None:
        return self.rollouts.get(rollout_id)

    @override
    async def find(self, created_by: str, request_id: str) -> Rollout | None:
        wanted = (created_by, request_id)
        return next((each for each in self.rollouts.values() if (each.created_by, each.request_id) == wanted), None)

    @override
    async def open_rollouts(self) -> Sequence[Rollout]:
        return [each for each in self.rollouts.values() if not each.state.has_ended]

    @override
    async def list(self, states: Collection[RolloutState], after: RolloutPlace | None, limit: int) -> Sequence[Rollout]:
        assert after is None
        return [each for each in self.rollouts.values() if each.state in states][:limit]

    @override
    async def items(self, rollout_id: str) -> Sequence[RolloutItem]:
        return tuple(self.kept[rollout_id].values())

    @override
    async def list_items(
        self, rollout_id: str, states: Collection[ItemState], ring: int | None, after: ItemPlace | None, limit: int
    ) -> Sequence[RolloutItem]:
        raise NotImplementedError

    @override
    async def open_items_of(self, certificate_ids: Collection[str]) -> Sequence[RolloutItem]:
        return [
            item
            for rollout in await self.open_rollouts()
            for item in self.kept[rollout.rollout_id].values()
            if item.certificate_id in certificate_ids
        ]

    @override
    async def activations_of(self, hosts: Collection[str]) -> Sequence[HostActivation]:
        raise NotImplementedError


class HeldHosts(FleetIndex):
    """`FleetIndex` of hosts that a test puts there."""

    def __init__(self) -> None:
        self.known: dict[str, IndexedHost] = {}
        self.told: list[Callable[[str], None]] = []

    def put(self, host: IndexedHost) -> None:
        """The host is so now."""
        self.known[host.name] = host
        for told in self.told:
            told(host.name)

    @property
    @override
    def hosts(self) -> Mapping[str, IndexedHost]:
        return self.known

    @property
    @override
    def ready(self) -> bool:
        return True

    @property
    @override
    def services(self) -> int:
        return 0

    @override
    def counts(self) -> Mapping[HealthWord, int]:
        return {}

    @override
    async def causes(self, picked: Picked | None = None) -> Sequence[CauseGroup]:
        return ()

    @override
    async def walk(self) -> AsyncIterator[IndexedHost]:
        for host in tuple(self.known.values()):
            yield host

    @override
    def listen(self, told: Callable[[str], None]) -> None:
        self.told.append(told)

    @override
    async def settled(self) -> None:
        pass


class RolloutWorld(Successors, Certificates):
    """Hosts h0, h1 ..., each with a certificate of `shop`, the first in the ring of its label; and who runs rollouts."""

    def __init__(self, count: int = 3, *, rules: RolloutRules | None = None) -> None:
        self.clock = ManualClock()
        self.store, self.index, self.meter = KeptRollouts(), HeldHosts(), FakeMeter()
        self.names = [f"h{number}.test" for number in range(count)]
        grants = [
            Grant(name, IdentityKind.HOST, name[:2], ("shop",), labels={"ring": "first"} if number == 0 else {})
            for number, name in enumerate(self.names)
        ]
        grants += [Grant(name, IdentityKind.OPERATOR, name, (), ("admin",)) for name in ("alice.test", "bob.test")]
        profile = Profile("shop", "multi_san", ("shop.test",), "hash", issuers=("acme", "second"))
        self.policy = FakePolicySource(
            replace(FakePolicy.of(grants, [profile]), rules=(rules or RolloutRules(), IncidentRules()))
        )
        self.records = {f"old-{name}": self.record(f"old-{name}", name) for name in self.names}
        self.found: dict[str, Successor] = {}
        self.plans: list[RenewalPlan] = []
        self.blocked: list[str] = []
        self.done: list[tuple[str, ...]] = []
        """What was done, in its order: plans, saves, activations."""
        self.revoked: list[str] = []
        self.revocation_errors: list[RefusalError] = []
        self.plan_errors: list[RefusalError] = []
        """What the next plans that are replaced raise."""
        self.statuses: dict[str, CertificateStatus] = {}
        self.pool = BlockingPool("test-rollouts", 1)
        self.trail = AuditTrail(self.clock)
        for name in self.names:
            self.hold(name)
        self.watchers = RolloutWatchers()
        self.known = KnownRollouts(self.store, self.watchers)
        self.runner = self.new_runner()
        self.desk = self.new_desk()

    def new_runner(self) -> RolloutRunner:
        """Of this broker; of another one that has the role now."""
        return RolloutRunner(
            RunnerPorts(
                store=self.store,
                plans=self,
                keys=self,
                sources=Sources(self.index, self, self, self, self.policy, self.clock),  # type: ignore[arg-type] # what of hosts is asked for
                watchers=self.watchers,
                known=self.known,
                revocations=partial(
                    ReplacedRevocations,
                    revokes=self,
                    certificates=self,
                    index=self.index,
                    lease=LastingLease(),
                    known=self.known,
                    clock=self.clock,
                    rng=random.Random(1),
                ),
                activations_wanted=lambda hosts: self.done.extend(("tell", host) for host in sorted(hosts)),
                issued_by=self._issued_by,
                pool=self.pool,
                trail=self.trail,
                meter=self.meter,
            )
        )

    def new_desk(self) -> RolloutDesk:
        """Of this broker."""
        return RolloutDesk(
            store=self.store,
            freezing=Freezing(self, self.index, self._forecast),  # type: ignore[arg-type] # what of plans is asked for
            index=self.index,
            policy=self.policy,
            issuers=("acme", "second"),
            known=self.known,
            trail=self.trail,
            clock=self.clock,
            rng=random.Random(1),
        )

    async def start(self, spec: RolloutSpec | None = None, **changes: Any) -> Rollout:
        """A rollout of all hosts in two rings."""
        spec = spec or RolloutSpec(Selection(all=True), "drill", rings=TWO_RINGS)
        return await self.desk.create(operator(), f"req-{len(self.store.rollouts)}", replace(spec, **changes))

    async def look(self) -> Rollout:
        """Have the runner look; the first rollout as it is then."""
        await self.runner.look()
        return next(iter(self.store.rollouts.values()))

    def states(self, rollout: Rollout) -> list[ItemState]:
        """Of the certificates, by host."""
        return [self.store.kept[rollout.rollout_id][f"old-{name}"].state for name in self.names]

    def events(self, *types: AuditEventType) -> list[AuditEvent]:
        """Those that were written."""
        return [event for event in self.store.events if event.event_type in types]

    # What hosts do.

    def hold(self, name: str, **changes: Any) -> None:
        """The host has its old certificate in use, or what else is said."""
        old = self.records[f"old-{name}"]
        values = {
            "name": "shop",
            "profile": "shop",
            "state": CertificateState.SERVING,
            "dns_names": ("shop.test",),
            "certificate_id": f"old-{name}",
            "serial_number": old.serial_number,
            "issued_serial_number": old.serial_number,
            "served_serial_number": old.serial_number,
            **changes,
        }
        known = self.index.known.get(name) or IndexedHost(
            name,
            name[:2],
            connected=True,
            connect_time=self.clock.now(),
            last_seen_time=self.clock.now(),
            can_hold=True,
        )
        self.index.put(replace(known, certificates=(IndexedCertificate(**values),)))

    def change(self, name: str, **changes: Any) -> None:
        """Something of the host is another."""
        self.index.put(replace(self.index.known[name], **changes))

    def issue(self, name: str, *, same_key: bool = False, issuer: str = "acme") -> None:
        """The host has a new certificate, and holds it."""
        old, new_id = f"old-{name}", f"new-{name}"
        self.records[new_id] = self.record(new_id, name)
        self.found[old] = Successor(old, new_id, self.records[new_id].serial_number, issuer, same_key)
        self.hold(name, state=CertificateState.ISSUED, issued_serial_number=self.records[new_id].serial_number)

    def activate(self, name: str, **changes: Any) -> None:
        """The host has the new one in use."""
        serial = self.records[f"new-{name}"].serial_number
        values = dict.fromkeys(("serial_number", "issued_serial_number", "served_serial_number"), serial)
        self.hold(name, **{"certificate_id": f"new-{name}", **values, **changes})

    def fail(self, name: str) -> None:
        """The host could not activate, and is back on the old one."""
        serial = self.records[f"new-{name}"].serial_number
        self.hold(
            name,
            state=CertificateState.DEGRADED,
            issued_serial_number=serial,
            next_attempt_time=self.clock.now() + MINUTE,
            error_cause="RELOAD nginx.service",
        )

    def record(self, certificate_id: str, name: str) -> CertificateRecord:
        """A certificate of the host."""
        now = self.clock.now()
        return CertificateRecord(
            certificate_id, "order", name, "shop", "hash", "acme", ("shop.test",), f"key-{certificate_id}",
            f"{abs(hash(certificate_id)):x}", "", "", now, now + 60 * DAY, now + 30 * DAY, now,
        )  # fmt: skip

    # The ports.

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        self.plans += plans
        self.done += [("plan", plan.host) for plan in plans]

    async def replace_plan(
        self, before: RenewalPlan | None, after: RenewalPlan, events: Sequence[AuditEvent] = ()
    ) -> bool:
        current = next((plan for plan in reversed(self.plans) if plan.host == after.host), None)
        if self.plan_errors:
            raise self.plan_errors.pop(0)
        if current != before:
            return False
        await self.set_plans([after], events)
        return True

    async def select(self, selection: Selection, now: datetime) -> Sequence[Selected]:
        return [
            Selected(f"old-{name}", name, now + 30 * DAY)
            for name in self.names
            if selection.all or name in selection.hosts or f"old-{name}" in selection.certificate_ids
        ]

    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        plans = {plan.host: plan for plan in self.plans}
        ends = now + 60 * DAY
        return [
            InForce(f"old-{name}", name, "shop", "acme", ("shop.test",), now, ends, now + 30 * DAY, plans.get(name))
            for name in hosts
        ]

    async def block_keys(self, certificate_ids: Sequence[str], time: datetime, events: Sequence[AuditEvent]) -> None:
        self.blocked += certificate_ids
        self.done += [("block", certificate_id) for certificate_id in certificate_ids]
        self.store.events += events

    async def list_hosts(self, *, hosts: Sequence[str] = ()) -> Sequence[HostRecord]:
        return [HostRecord(host, None, (self.statuses[host],)) for host in hosts if host in self.statuses]

    @override
    async def successors_of(self, certificate_ids: Collection[str]) -> Sequence[Successor]:
        return [self.found[each] for each in certificate_ids if each in self.found]

    @override
    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        return self.records.get(certificate_id)

    async def revoke_replaced(
        self, rollout_id: str, operator: str, certificate_id: str, reason: RevocationReason, why: str
    ) -> CertificateRecord:
        await asyncio.sleep(0)
        if self.revocation_errors:
            raise self.revocation_errors.pop(0)
        self.revoked.append(certificate_id)
        record = replace(self.records[certificate_id], revoke_time=self.clock.now(), revocation_reason=reason)
        self.records[certificate_id] = record
        return record

    async def _issued_by(self, _rollout: Rollout, _items: Iterable[RolloutItem]) -> datetime | None:
        return None

    async def _forecast(self, _items: Sequence[RolloutItem], _issuer: str) -> None:
        return None
