"""Store fakes over one `FakeDatabase`: orders, certificates, keys, the deny-list, reports and the audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.model import HostRecord, HostStream, RequestedRenewal, RevokedCertificate
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.identity.first_use import Verdict, activated, contested, judge
from certplane.broker.issuance.events import because
from certplane.broker.issuance.outcome import still_answers
from certplane.broker.model import (
    CertificateRecord,
    DenyEntry,
    EnrollmentReport,
    IdentityUse,
    KeyUse,
    KnownIdentity,
    Order,
    OrderCause,
    OrderDraft,
    OrderState,
    RevocationReason,
)
from certplane.broker.policy.limits import AHEAD, DAY, Counted, ReachedLimit, limit_refusal, limits_on
from certplane.broker.ports import CertificateQuery, DurableLimits, OpenedOrder, OrderChange, PruneBefore
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import CertificateState, Report
from certplane.runtime.clock import Clock
from tests.fakes.database import FailureMode, FakeDatabase, FakeHost
from tests.fakes.renewal import FakeRenewalPlanStore

_RANK = {state: rank for rank, state in enumerate(OrderState)}


class FakeOrderStore:
    """`OrderStore` in memory; a state that moves backwards is a mistake of the caller and raises RuntimeError."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def open_order(self, draft: OrderDraft, limits: DurableLimits, events: Sequence[AuditEvent]) -> OpenedOrder:
        async with self._db.faults.around("open_order"):
            self._db._check_up()
            now = self._db.clock.now()
            use = self._db.keys.get(draft.public_key_sha256)
            if use is not None and (use.blocked or use.identity != draft.identity):
                raise RefusalError(Reason.KEY_REUSED, "the key can't be used")
            joined = self._find(draft, now)
            if joined is not None:
                return OpenedOrder(joined, created=False)
            if use is not None and use.spent:
                raise RefusalError(Reason.KEY_REUSED, "the key can't be used")
            draft = replace(draft, cause=self._cause(draft, now))
            self._check_limits(draft, limits, now)
            order = Order(
                **{field.name: getattr(draft, field.name) for field in fields(OrderDraft)},
                order_id=self._db.new_id("order"),
                create_time=now,
                update_time=now,
            )
            events = because(order, events)
            spill = self._db._check_audit(events)
            self._db.orders[order.order_id] = order
            self._db.keys.setdefault(draft.public_key_sha256, KeyUse(draft.identity, blocked=False))
            (self._db.spilled if spill else self._db.events).extend(events)
            self._db.commits += 1
        return OpenedOrder(order, created=True)

    async def change_order(self, order_id: str, change: OrderChange, events: Sequence[AuditEvent] = ()) -> Order:
        def write() -> Order:
            order = self._db.orders.get(order_id)
            only_records = change == OrderChange(txt_records=change.txt_records)
            if order is None or not (order.state.is_open or only_records):
                raise RefusalError(Reason.ORDER_NOT_FOUND, "there is no such open order")
            values = {
                field.name: getattr(change, field.name)
                for field in fields(OrderChange)
                if field.name != "block_key" and getattr(change, field.name) is not None
            }
            if change.state is not None and _RANK[change.state] < _RANK[order.state]:
                raise RuntimeError(f"an order doesn't go back from {order.state} to {change.state}")
            if change.state is not None and change.state is not order.state:
                values["update_time"] = self._db.clock.now()
                if change.state is OrderState.FINALIZING:
                    values["finalize_time"] = self._db.clock.now()
            changed = replace(order, **values)
            self._db.orders[order_id] = changed
            if change.block_key:
                use = self._db.keys[order.public_key_sha256]
                self._db.keys[order.public_key_sha256] = replace(use, blocked=True)
            return changed

        return await self._db.write("change_order", events, write)

    async def finish_order(self, certificate: CertificateRecord, events: Sequence[AuditEvent]) -> Order:
        order = self._db.orders.get(certificate.order_id)
        if order is not None and order.state is OrderState.ISSUED:
            return order

        def write() -> Order:
            order = self._db.orders.get(certificate.order_id)
            if order is None or not order.state.is_open:
                raise RefusalError(Reason.ORDER_NOT_FOUND, "there is no such open order")
            finished = replace(
                order,
                state=OrderState.ISSUED,
                certificate_id=certificate.certificate_id,
                update_time=self._db.clock.now(),
                finalize_time=order.finalize_time or self._db.clock.now(),
            )
            self._db.certificates[certificate.certificate_id] = certificate
            self._db.orders[order.order_id] = finished
            return finished

        return await self._db.write("finish_order", events, write)

    async def get_order(self, order_id: str) -> Order | None:
        return await self._db.read("get_order", lambda: self._db.orders.get(order_id))

    async def last_ended(self, profile: str) -> Sequence[Order]:
        return await self._db.read(
            "last_ended",
            lambda: sorted(
                (o for o in self._db.orders.values() if o.profile == profile and not o.state.is_open),
                key=lambda order: (order.update_time, order.order_id),
                reverse=True,
            )[:32],
        )

    async def unfinished_orders(self) -> Sequence[Order]:
        return await self._db.read(
            "unfinished_orders",
            lambda: sorted(
                (order for order in self._db.orders.values() if order.state.is_open or order.txt_records),
                key=lambda order: (order.create_time, order.order_id),
            ),
        )

    def _find(self, draft: OrderDraft, now: datetime) -> Order | None:
        for order in reversed(self._db.orders.values()):
            if order.key == draft.key and (
                order.state.is_open
                or (
                    order.state is OrderState.FAILED
                    and order.retry_time is not None
                    and order.retry_time > now
                    and order.update_time <= now + AHEAD
                    and still_answers(order, draft)
                )
            ):
                return order
        return None

    def _cause(self, draft: OrderDraft, now: datetime) -> OrderCause:
        """What another order has taken already is asked for no more."""
        if not (draft.cause.asked_for or draft.cause is OrderCause.WITHDRAWN):
            return draft.cause

        def took(order: Order) -> bool:
            if draft.replaces_certificate_id and order.replaces_certificate_id == draft.replaces_certificate_id:
                return True
            asked = draft.ask_time
            since = asked is not None and asked < order.create_time <= now + AHEAD
            if not draft.replaces_certificate_id:
                return since and order.profile == draft.profile
            unnamed = order.cause.asked_for and not order.replaces_certificate_id
            return since and unnamed and order is self._follower(draft)

        mine = (order for order in self._db.orders.values() if order.identity == draft.identity)
        taken = any(took(order) for order in mine if _is_certificate(order))
        return OrderCause.ORDINARY if taken else draft.cause

    def _follower(self, draft: OrderDraft) -> Order | None:
        replaced = self._db.certificates.get(draft.replaces_certificate_id)
        return next(
            (
                order
                for order in self._db.orders.values()
                if (order.identity, order.profile) == (draft.identity, draft.profile)
                and _is_certificate(order)
                and replaced is not None
                and order.create_time > replaced.create_time
            ),
            None,
        )

    def _check_limits(self, draft: OrderDraft, limits: DurableLimits, now: datetime) -> None:
        reached = []
        for limit in limits_on(draft.cause, limits):
            counted = self._counted(limit.counted, draft, now)
            ahead = min(limit.window, AHEAD)
            inside = sorted(time for time in counted if now - limit.window < time <= now + ahead)
            if len(inside) >= limit.most:
                frees = inside[len(inside) - limit.most] + limit.window if limit.most else now + limit.window
                reached.append(ReachedLimit(limit, frees))
        if reached:
            raise limit_refusal(reached, draft.cause, now)

    def _counted(self, counted: Counted, draft: OrderDraft, now: datetime) -> list[datetime]:
        orders = list(self._db.orders.values())
        mine = [order for order in orders if order.identity == draft.identity]
        same = [order for order in mine if order.profile == draft.profile]
        unasked = [order for order in same if not order.cause.asked_for]
        match counted:
            case Counted.ORDERS_OF_IDENTITY:
                found = [order for order in mine if not order.cause.asked_for]
            case Counted.ORDERS_OF_PROFILE:
                found = unasked
            case Counted.KEYS_OF_PROFILE:
                if any(o.public_key_sha256 == draft.public_key_sha256 and o.create_time > now - DAY for o in same):
                    return []
                found = list({order.public_key_sha256: order for order in unasked}.values())
            case Counted.CERTIFICATES_OF_PROFILE:
                found = [order for order in unasked if _is_certificate(order)]
            case Counted.EARLY_OF_PROFILE:
                found = [order for order in same if order.cause is OrderCause.EARLY and _is_certificate(order)]
            case Counted.CERTIFICATES_OF_NAMES:
                found = [
                    order
                    for order in orders
                    if order.dns_names == draft.dns_names
                    and order.cause is not OrderCause.ISSUER
                    and _is_certificate(order)
                ]
            case Counted.ASKED_FOR_OF_PROFILE:
                found = [order for order in same if order.cause.asked_for]
        return [order.create_time for order in found]


def _is_certificate(order: Order) -> bool:
    return order.state.is_open or order.finalize_time is not None


class FakeCertificateStore:
    """`CertificateStore` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def find_cached(
        self, identity: str, profile_hash: str, issuer: str, public_key_sha256: str
    ) -> CertificateRecord | None:
        wanted = (identity, profile_hash, issuer, public_key_sha256)

        def query() -> CertificateRecord | None:
            use = self._db.keys.get(public_key_sha256)
            if use is not None and (use.blocked or use.identity != identity):
                return None
            return next(
                (
                    record
                    for record in reversed(self._db.certificates.values())
                    if (record.identity, record.profile_hash, record.issuer, record.public_key_sha256) == wanted
                    and record.revoke_time is None
                ),
                None,
            )

        return await self._db.read("find_cached", query)

    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        return await self._db.read("get_certificate", lambda: self._db.certificates.get(certificate_id))

    async def list_certificates(self, query: CertificateQuery) -> Sequence[CertificateRecord]:
        def page() -> list[CertificateRecord]:
            records = [
                record
                for record in reversed(self._db.certificates.values())
                if record.identity == query.identity
                and query.profile in ("", record.profile)
                and (query.usable_at is None or (record.revoke_time is None and record.not_after > query.usable_at))
            ]
            if query.after:
                ids = [record.certificate_id for record in records]
                records = records[ids.index(query.after) + 1 :] if query.after in ids else []
            return records[: query.limit]

        return await self._db.read("list_certificates", page)

    async def mark_delivered(self, certificate_id: str, time: datetime, events: Sequence[AuditEvent]) -> None:
        def write() -> None:
            record = self._known(certificate_id)
            if record.deliver_time is None:
                self._db.certificates[certificate_id] = replace(record, deliver_time=time)

        await self._db.write("mark_delivered", events, write)

    async def mark_revoked(
        self,
        certificate_id: str,
        reason: RevocationReason,
        time: datetime,
        events: Sequence[AuditEvent],
        *,
        by_holder: bool = False,
    ) -> CertificateRecord:
        def write() -> CertificateRecord:
            record = self._known(certificate_id)
            if record.revoke_time is None:
                record = replace(record, revoke_time=time, revocation_reason=reason, withdrawn=by_holder)
            record = replace(record, withdrawn=record.withdrawn and by_holder)
            self._db.certificates[certificate_id] = record
            compromised = reason is RevocationReason.KEY_COMPROMISE
            use = self._db.keys.get(record.public_key_sha256, KeyUse(record.identity, blocked=False))
            self._db.keys[record.public_key_sha256] = replace(use, blocked=use.blocked or compromised, spent=True)
            return record

        return await self._db.write("mark_revoked", events, write)

    async def revoked_since(self, time: datetime, now: datetime) -> Sequence[CertificateRecord]:
        def query() -> list[CertificateRecord]:
            revoked = [(each.revoke_time, each) for each in self._db.certificates.values() if each.not_after > now]
            found = [(since, each) for since, each in revoked if since is not None and since >= time]
            return [each for _, each in sorted(found, key=lambda pair: (pair[0], pair[1].certificate_id))]

        return await self._db.read("revoked_since", query)

    def _known(self, certificate_id: str) -> CertificateRecord:
        if certificate_id not in self._db.certificates:
            raise RefusalError(Reason.CERTIFICATE_NOT_FOUND, "there is no such certificate")
        return self._db.certificates[certificate_id]


class FakeKeyLedger:
    """`KeyLedger` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def key_use(self, public_key_sha256: str) -> KeyUse | None:
        return await self._db.read("key_use", lambda: self._db.keys.get(public_key_sha256))


class FakeDenyList:
    """`DenyList` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    def denied(self, name: str, issuer: str, serial_number: str) -> DenyEntry | None:
        return next(
            (
                entry
                for entry in self._db.denied
                if (entry.name and entry.name == name)
                or (entry.serial_number == serial_number != "" and issuer in (entry.issuer, ""))
            ),
            None,
        )

    async def deny(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> None:
        if bool(entry.name) == bool(entry.issuer and entry.serial_number):
            raise ValueError("deny by a name, or by an issuer and a serial number")

        time = entry.create_time or self._db.clock.now()

        def write() -> None:
            if self._index(entry) is None:
                self._db.denied.append(replace(entry, create_time=time))
            self._db.end_orders(entry, time)

        await self._db.write("deny", (*events, *self._db.ended_by(entry, time)), write)

    async def allow(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> bool:
        def write() -> bool:
            index = self._index(entry)
            if index is None:
                return False
            del self._db.denied[index]
            return True

        return await self._db.write("allow", events, write)

    async def entries(self) -> Sequence[DenyEntry]:
        return await self._db.read("entries", lambda: list(self._db.denied))

    def _index(self, entry: DenyEntry) -> int | None:
        wanted = (entry.name, entry.issuer, entry.serial_number)
        return next(
            (
                index
                for index, known in enumerate(self._db.denied)
                if (known.name, known.issuer, known.serial_number) == wanted
            ),
            None,
        )


class FakeIdentityLedger:
    """`IdentityLedger` in memory, and what an operator settles; what another process would see is what this one sees."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    def known(self, name: str) -> KnownIdentity | None:
        return self._db.identities.get(name)

    async def activate(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:
        return await self._use("activate", name, use, Verdict.ACTIVATE, events)

    async def contest(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:
        return await self._use("contest", name, use, Verdict.CONTEST, events)

    async def count_displacement(self, name: str, time: datetime) -> None:
        def write() -> None:
            known = self._db.identities.get(name)
            if known is not None:
                count = known.displaced_count + 1
                self._db.identities[name] = replace(known, displaced_count=count, displace_time=time)

        await self._db.write("count_displacement", (), write)

    async def identities(self) -> Sequence[KnownIdentity]:
        return await self._db.read("identities", lambda: [known for _, known in sorted(self._db.identities.items())])

    async def settle(
        self,
        seen: KnownIdentity,
        settled: KnownIdentity,
        denied: Sequence[DenyEntry],
        allowed: Sequence[DenyEntry],
        events: Sequence[AuditEvent],
    ) -> bool:
        known = self._db.identities.get(seen.name)
        if known is None or (known.active, known.retired, known.contest) != (seen.active, seen.retired, seen.contest):
            return False

        def write() -> bool:
            count, time = known.displaced_count, known.displace_time
            self._db.identities[seen.name] = replace(settled, displaced_count=count, displace_time=time)
            gone = {(entry.name, entry.issuer, entry.serial_number) for entry in allowed}
            self._db.denied = [
                entry for entry in self._db.denied if (entry.name, entry.issuer, entry.serial_number) not in gone
            ]
            self._db.denied += denied
            for entry in denied:
                self._db.end_orders(entry, entry.create_time or self._db.clock.now())
            return True

        ended = [
            event for entry in denied for event in self._db.ended_by(entry, entry.create_time or self._db.clock.now())
        ]
        return await self._db.write("settle", (*events, *ended), write)

    async def _use(
        self, operation: str, name: str, use: IdentityUse, wanted: Verdict, events: Sequence[AuditEvent]
    ) -> KnownIdentity:
        known = self._db.identities.get(name)
        if known is not None and judge(known, use) is not wanted:
            return await self._db.read(operation, lambda: known)
        if wanted is Verdict.ACTIVATE:
            made = activated(known, name, use)
        elif known is not None:
            made = contested(known, use)
        else:
            raise RuntimeError("an identity that isn't known has no retired certificate")

        def write() -> KnownIdentity:
            self._db.identities[name] = made
            return made

        return await self._db.write(operation, events, write)


class FakeEnrollmentStore:
    """`EnrollmentStore` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def record_report(self, report: EnrollmentReport, events: Sequence[AuditEvent]) -> None:
        def write() -> None:
            self._db.reports[report.identity] = report

        await self._db.write("record_report", events, write)


class FakeFleetStore:
    """`FleetStore` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def record_reports(
        self,
        host: str,
        epoch: str,
        reports: Sequence[Report],
        events: Mapping[int, AuditEvent] | None = None,
        *,
        names: Sequence[str] | None = None,
        stream: HostStream | None = None,
    ) -> RecordedReports:
        audited: list[AuditEvent] = []
        telling: list[int] = []

        def write() -> RecordedReports:
            row = self._db.hosts.setdefault(host, FakeHost())
            row.take_epoch(epoch)
            new = [report for report in reports if report.sequence > row.acknowledged]
            for report in new:
                status = report.certificate
                row.acknowledged = report.sequence
                row.certificates[status.name] = status
                if status.outcome and row.outcomes.get(status.name) != status.outcome:
                    row.outcomes[status.name] = status.outcome
            forgotten = () if names is None else tuple(sorted(row.certificates.keys() - set(names)))
            for name in forgotten:
                del row.certificates[name]
                row.outcomes.pop(name, None)
            if stream is not None:
                row.stream = stream
            return RecordedReports(row.acknowledged, tuple(new), forgotten, tuple(telling))

        before = self._db.hosts.get(host, FakeHost())
        acknowledged = before.acknowledged if before.epoch == epoch else 0
        outcomes = {report.certificate.name: before.outcomes.get(report.certificate.name) for report in reports}
        for report in reports:
            name, outcome = report.certificate.name, report.certificate.outcome
            if report.sequence > acknowledged and outcome and outcomes[name] != outcome:
                outcomes[name] = outcome
                telling.append(report.sequence)
                if events and report.sequence in events:
                    audited.append(events[report.sequence])
        return await self._db.write("record_reports", audited, write)

    async def record_stream(self, stream: HostStream) -> None:
        def write() -> None:
            self._db.hosts.setdefault(stream.host, FakeHost()).stream = stream

        await self._db.write("record_stream", (), write)

    async def record_directive_error(self, host: str, error: Refusal | None) -> None:
        def write() -> None:
            if host in self._db.hosts and self._db.hosts[host].stream is not None:
                self._db.hosts[host].error = error

        await self._db.write("record_directive_error", (), write)

    async def get_host(self, host: str) -> HostRecord | None:
        return await self._db.read("get_host", lambda: self._record(host))

    async def list_hosts(
        self, *, after: str = "", limit: int = 500, hosts: Sequence[str] | None = None
    ) -> Sequence[HostRecord]:
        def page() -> list[HostRecord]:
            wanted = self._db.hosts if hosts is None else self._db.hosts.keys() & set(hosts)
            records = [self._record(host) for host in sorted(wanted) if host > after]
            return [record for record in records if record is not None][: max(0, limit)]

        return await self._db.read("list_hosts", page)

    async def list_revoked(self, now: datetime, hosts: Sequence[str] | None = None) -> Sequence[RevokedCertificate]:
        def revoked() -> list[RevokedCertificate]:
            found = [
                RevokedCertificate(
                    each.identity, each.serial_number, each.revoke_time, str(each.revocation_reason or "")
                )
                for each in self._db.certificates.values()
                if each.revoke_time is not None and each.not_after > now and (hosts is None or each.identity in hosts)
            ]
            return sorted(found, key=lambda each: (each.host, each.serial_number))

        return await self._db.read("list_revoked", revoked)

    async def count_states(self) -> Mapping[CertificateState, int]:
        return await self._db.read(
            "count_states",
            lambda: Counter(status.state for row in self._db.hosts.values() for status in row.certificates.values()),
        )

    async def find_request(self, requester: str, request_id: str) -> RequestedRenewal | None:
        return await self._db.read("find_request", lambda: self._db.requests.get((requester, request_id)))

    async def record_request(self, requester: str, requested: RequestedRenewal, time: datetime) -> None:
        key = (requester, requested.request_id)

        def write() -> None:
            self._db.requests.setdefault(key, requested)
            self._db.request_times.setdefault(key, time)

        await self._db.write("record_request", (), write)

    def _record(self, host: str) -> HostRecord | None:
        row = self._db.hosts.get(host)
        if row is None or row.stream is None:
            return None
        certificates = tuple(status for _, status in sorted(row.certificates.items()))
        return HostRecord(host, row.stream, certificates, row.acknowledged, row.error)


class FakeAuditLog:
    """`AuditLog` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def append(self, events: Sequence[AuditEvent]) -> None:
        await self._db.append(events)

    async def tail(self, limit: int) -> Sequence[dict[str, object]]:
        return await self._db.read(
            "tail", lambda: [event.record() for event in self._db.events[-limit:]] if limit > 0 else []
        )


class FakeRepeatCounts:
    """`RepeatCounts` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def keep(self, summaries: Sequence[AuditEvent]) -> None:
        await self._db.keep_counts(summaries)

    async def close(self, summaries: Sequence[AuditEvent]) -> None:
        def write() -> None:
            for event in summaries:
                self._db.counts.pop(event.event_id, None)

        await self._db.write("close_counts", summaries, write)

    async def recover(self) -> int:
        def write() -> int:
            left = [event for _, event in sorted(self._db.counts.items())]
            known = {event.event_id for event in self._db.events}
            self._db.events += [event for event in left if event.event_id not in known]
            self._db.counts.clear()
            return len(left)

        return await self._db.write("recover_counts", (), write)


class FakeUpkeep:
    """`Upkeep` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def prune(self, before: PruneBefore, most: int) -> Mapping[str, int]:
        removed: dict[str, int] = {}
        if before.audit is not None:
            limit = before.audit
            old = [event for event in self._db.events if event.timestamp < limit][:most]
            removed["audit_events"] = await self._db.write("prune", (), lambda: self._drop_events(old))
        if before.ended is not None:
            ended = before.ended
            removed |= await self._db.write("prune", (), lambda: self._drop_ended(before.now, ended, most))
        return removed

    async def size(self) -> int:
        return await self._db.read("size", lambda: 1000 * len(self._db.events))

    def _drop_events(self, old: Sequence[AuditEvent]) -> int:
        self._db.events[:] = [event for event in self._db.events if event not in old]
        return len(old)

    def _drop_ended(self, now: datetime, ended: datetime, most: int) -> dict[str, int]:
        db = self._db
        counted = min(ended, now - timedelta(days=8))

        def is_finished(order: Order) -> bool:
            return (
                not order.state.is_open
                and order.update_time < counted
                and not order.txt_records
                and (order.retry_time is None or order.retry_time < now)
            )

        def is_needless(record: CertificateRecord) -> bool:
            replaced = db.certificates.get(db.orders[record.order_id].replaces_certificate_id)
            return record.not_after < counted and (replaced is None or replaced.not_after <= now)

        records = [
            record
            for record in db.certificates.values()
            if is_finished(db.orders[record.order_id]) and is_needless(record)
        ][:most]
        issued = {record.order_id for record in db.certificates.values()}
        failed = [order for order in db.orders.values() if is_finished(order) and order.order_id not in issued][:most]
        for record in records:
            del db.certificates[record.certificate_id]
            db.plans.pop(record.certificate_id, None)
        for order_id in [record.order_id for record in records] + [order.order_id for order in failed]:
            del db.orders[order_id]
        hosts = [name for name, host in db.hosts.items() if host.stream and host.stream.last_seen_time < ended][:most]
        reports = [name for name, report in db.reports.items() if report.record_time < ended][:most]
        requests = [key for key, time in db.request_times.items() if time < ended][:most]
        for name in hosts:
            del db.hosts[name]
        for name in reports:
            del db.reports[name]
        for key in requests:
            del db.requests[key], db.request_times[key]
        return {
            "certificates": len(records),
            "orders": len(records) + len(failed),
            "host_streams": len(hosts),
            "enrollment_reports": len(reports),
            "renewal_requests": len(requests),
        }


@dataclass(frozen=True)
class FakeStores:
    """All store fakes over one database."""

    database: FakeDatabase
    orders: FakeOrderStore
    certificates: FakeCertificateStore
    keys: FakeKeyLedger
    deny_list: FakeDenyList
    identities: FakeIdentityLedger
    renewal_plans: FakeRenewalPlanStore
    enrollments: FakeEnrollmentStore
    fleet: FakeFleetStore
    audit: FakeAuditLog
    repeats: FakeRepeatCounts
    upkeep: FakeUpkeep

    @classmethod
    def over(cls, database: FakeDatabase) -> FakeStores:
        """The fakes of `database`."""
        return cls(
            database,
            FakeOrderStore(database),
            FakeCertificateStore(database),
            FakeKeyLedger(database),
            FakeDenyList(database),
            FakeIdentityLedger(database),
            FakeRenewalPlanStore(database),
            FakeEnrollmentStore(database),
            FakeFleetStore(database),
            FakeAuditLog(database),
            FakeRepeatCounts(database),
            FakeUpkeep(database),
        )

    @classmethod
    def open(cls, clock: Clock, *, failure_mode: FailureMode = "fail_closed") -> FakeStores:
        """The fakes of a new database."""
        return cls.over(FakeDatabase(clock, failure_mode=failure_mode))
