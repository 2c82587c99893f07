"""What nobody will ask for again is removed, a few rows at a time; and how large the database is.

What goes is looked up by the connection that reads, so that the writer's thread is held for the removal alone: some
milliseconds a batch. SQLite keeps the pages for rows to come: its file stops growing and doesn't shrink.

What stays, however old: open orders and those whose TXT records still stand; orders that a limit counts or a failed
call may join; certificates that are valid, or that something valid has replaced; keys (a key is never used twice), the
deny-list, and which certificate of an identity is in use.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Table,
    bindparam,
    delete,
    exists,
    or_,
    select,
    text,
    update,
)
from typing_extensions import override

from certplane.broker.model import OrderState
from certplane.broker.ports import PruneBefore, Upkeep
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.campaign_schema import rollout_items, rollouts
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import (
    audit_chains,
    audit_checkpoints,
    audit_events,
    certificate_statuses,
    certificate_watchers,
    certificates,
    enrollment_reports,
    host_streams,
    orders,
    renewal_plans,
    renewal_request_items,
    renewal_requests,
    report_sequences,
)
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Row, Statement, limited_to
from certplane.broker.store.writer import Writer

_IDS: Final = 64
"""Rows of one statement: shorter lists are filled up with their last one."""
_SEGMENTS: Final = 64
"""Of a chain that are looked at together: so many that one of a clock that went ahead is seen past."""
_COUNTED: Final = timedelta(days=8)
"""The longest window of a limit is a week; a day more for clocks."""


class SqlUpkeep(Upkeep):
    """`Upkeep` over the database."""

    def __init__(self, database: Database, writer: Writer, path: Path | None) -> None:
        """`path` is SQLite's file; None: a server's database, which is asked for its size."""
        self._database = database
        self._writer = writer
        self._path = path
        self._passed_over = 0
        """The sequence of the last event that is dated in the future and stands before older ones."""
        self._host_passed = ""
        """The last host that was looked at, while a look at all of them is under way."""
        compiler = database.compiler
        before: BindParameter[Any] = bindparam("before")
        replaced = certificates.alias("replaced")
        finished = (
            orders.c.end_time < before,
            orders.c.txt_records.is_(None),
            or_(orders.c.retry_time.is_(None), orders.c.retry_time < bindparam("now")),
        )
        # While what it replaced is valid, it is known by this order alone that nobody needs to renew it.
        needless = ~exists().where(
            replaced.c.certificate_id == orders.c.replaces_certificate_id, replaced.c.not_after > bindparam("now")
        )
        expired = (
            select(certificates.c.certificate_id, certificates.c.order_id)
            .join(orders, orders.c.order_id == certificates.c.order_id)
            .where(certificates.c.not_after < before, needless, *finished)
            .suffix_with(limited_to())
        )
        self._expired = [
            # Word for word the conditions of the indexes that answer them.
            compiler(expired.where(text("revoke_time IS NULL")).order_by(certificates.c.not_after)),
            compiler(expired.where(text("revoke_time IS NOT NULL"))),
        ]
        without_certificate = ~exists().where(certificates.c.order_id == orders.c.order_id)
        failed = orders.c.state == str(OrderState.FAILED)
        self._failed = compiler(
            select(orders.c.order_id)
            .where(*finished, failed, without_certificate)
            .order_by(orders.c.end_time)
            .suffix_with(limited_to())
        )
        # Likewise: an index of when each was seen last would be written whenever one is seen.
        self._next_hosts = compiler(
            select(host_streams.c.host, host_streams.c.last_seen_time)
            .where(host_streams.c.host > bindparam("after"))
            .order_by(host_streams.c.host)
            .suffix_with(limited_to())
        )
        self._reports = compiler(
            select(enrollment_reports.c.identity)
            .where(enrollment_reports.c.record_time < before)
            .suffix_with(limited_to())
        )
        self._watchers = compiler(
            select(certificate_watchers.c.identity, certificate_watchers.c.broker_id)
            .where(certificate_watchers.c.last_seen_time < before)
            .suffix_with(limited_to())
        )
        self._delete_watcher = compiler(
            delete(certificate_watchers).where(
                certificate_watchers.c.identity == bindparam("identity"),
                certificate_watchers.c.broker_id == bindparam("broker_id"),
                certificate_watchers.c.last_seen_time < before,
            )
        )
        self._requests = compiler(
            select(renewal_requests.c.requester, renewal_requests.c.request_id)
            .where(renewal_requests.c.create_time < before)
            .suffix_with(limited_to())
        )
        self._rollouts = compiler(
            select(rollouts.c.rollout_id)
            .where(rollouts.c.end_time < before, text("end_time IS NOT NULL"))
            .suffix_with(limited_to())
        )
        # The first rows and their times, not the rows of a time: no index of the times has to be kept for it.
        self._first_events = compiler(
            select(*(audit_events.c[name] for name in ("sequence", "create_time", "chain_id", "number")))
            .where(audit_events.c.sequence > bindparam("after"))
            .order_by(audit_events.c.sequence)
            .suffix_with(limited_to())
        )
        self._delete_events = self._deleting(audit_events, "sequence")
        of, number = audit_checkpoints.c, bindparam("number", type_=BigInteger)
        self._segments = compiler(
            select(of.number, of.time)
            .where(of.chain_id == bindparam("chain_id"), of.number >= number)
            .order_by(of.number)
            .suffix_with(limited_to(_SEGMENTS))
        )
        self._pruned = compiler(
            select(audit_chains.c.pruned_number).where(audit_chains.c.chain_id == bindparam("chain_id"))
        )
        self._prune_chain = compiler(
            update(audit_chains)
            .where(audit_chains.c.chain_id == bindparam("which"), audit_chains.c.pruned_number < bindparam("until"))
            .values(pruned_number=bindparam("until"))
        )
        self._prune_checkpoints = compiler(
            delete(audit_checkpoints).where(
                audit_checkpoints.c.chain_id == bindparam("which"), audit_checkpoints.c.number < bindparam("until")
            )
        )
        self._delete_items, self._delete_request = (
            compiler(
                delete(table).where(
                    table.c.requester == bindparam("requester"), table.c.request_id == bindparam("request_id")
                )
            )
            for table in (renewal_request_items, renewal_requests)
        )
        self._delete_rollout, self._delete_rollout_items = (
            compiler(delete(table).where(table.c.rollout_id == bindparam("which")))
            for table in (rollouts, rollout_items)
        )
        self._delete_plans = self._deleting(renewal_plans, "certificate_id")
        self._delete_certificates = self._deleting(certificates, "certificate_id")
        self._delete_orders = self._deleting(orders, "order_id")
        # Looked at again: it may have come back since it was found.
        self._delete_streams = self._deleting(host_streams, "host", host_streams.c.last_seen_time < before)
        self._delete_reports = self._deleting(enrollment_reports, "identity", enrollment_reports.c.record_time < before)
        self._delete_statuses, self._delete_sequences = (
            self._deleting(table, "host", ~exists().where(host_streams.c.host == table.c.host))
            for table in (certificate_statuses, report_sequences)
        )
        self._size = None if path is not None else compiler(text("SELECT pg_database_size(current_database())"))

    @override
    async def prune(self, before: PruneBefore, most: int) -> Mapping[str, int]:
        removed: dict[str, int] = {}
        if before.audit is not None:
            removed["audit_events"] = await self._prune_events(before.audit, before.now, most)
        if before.ended is not None:
            counted = min(before.ended, before.now - _COUNTED)
            values = {"before": to_micros(counted), "now": to_micros(before.now)}
            removed |= await self._prune_orders(values, most)
            removed |= await self._prune_hosts({"before": to_micros(before.ended)}, most)
            removed |= await self._prune_rollouts({"before": to_micros(before.ended)})
        return removed

    @override
    async def size(self) -> int:
        if self._path is None:
            assert self._size is not None
            with reading():
                row = await self._database.one(self._size, {})
            return int(row[0]) if row is not None else 0
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    async def _prune_events(self, before: datetime, now: datetime, most: int) -> int:
        limit = to_micros(before)
        while True:
            first = await self._rows(self._first_events, {"after": self._passed_over}, most)
            segments = await self._old_segments(first, limit)
            old = [
                sequence
                for sequence, time, chain_id, number in first
                if (time < limit if chain_id is None else number <= segments.get(chain_id, 0))
            ]
            if old:
                break
            if not any(time < limit or from_micros(time) > now for _, time, _, _ in first):
                self._passed_over = 0  # all of them are looked at again the next time
                return 0
            # What stays, of a clock that went ahead or of a segment that isn't old as a whole, may stand before what
            # goes.
            self._passed_over = first[-1][0]

        def change(session: Session) -> Done[int]:
            for chain_id, number in segments.items():
                values = {"which": chain_id, "until": number}
                session.execute(self._prune_chain, self._prune_chain.arguments(values))
                session.execute(self._prune_checkpoints, self._prune_checkpoints.arguments(values))
            return Done(self._delete(session, self._delete_events, old))

        return await self._writer.write(change, ())

    async def _old_segments(self, first: Sequence[Row], limit: int) -> dict[int, int]:
        """Of each chain that begins among these events, up to which number it is old.

        Whole segments go, the first ones of a chain first, so that its rest is proven by the checkpoint that stays.
        What stands before an old checkpoint is old, whatever the clock said that it is dated by.
        """
        begins: dict[int, int] = {}
        for _, _, chain_id, number in first:
            if chain_id is not None:
                begins.setdefault(chain_id, number)
        found = {}
        for chain_id, number in begins.items():
            values = {"chain_id": chain_id, "number": number}
            with reading():
                pruned = await self._database.one(self._pruned, values)
                segments = await self._database.all(self._segments, values)
            if pruned is not None and number <= pruned[0] + 1:
                found[chain_id] = max((end for end, time in segments if time < limit), default=0)
        return {chain_id: number for chain_id, number in found.items() if number}

    async def _prune_orders(self, values: Mapping[str, object], most: int) -> dict[str, int]:
        issued: list[Row] = []
        for statement in self._expired:
            issued += await self._rows(statement, values, most - len(issued))
        failed = await self._rows(self._failed, values, most)
        certificate_ids = [row[0] for row in issued]
        order_ids = [row[1] for row in issued] + [row[0] for row in failed]

        def change(session: Session) -> Done[tuple[int, int]]:
            self._delete(session, self._delete_plans, certificate_ids)
            gone = self._delete(session, self._delete_certificates, certificate_ids)
            return Done((gone, self._delete(session, self._delete_orders, order_ids)))

        certificate_count = order_count = 0
        if order_ids:
            certificate_count, order_count = await self._writer.write(change, ())
        return {"certificates": certificate_count, "orders": order_count}

    async def _prune_hosts(self, values: Mapping[str, int], most: int) -> dict[str, int]:
        hosts = await self._old_hosts(values["before"], most)
        reports = [row[0] for row in await self._rows(self._reports, values, most)]
        requests = await self._rows(self._requests, values, most)
        watchers = await self._rows(self._watchers, values, most)

        def change(session: Session) -> Done[dict[str, int]]:
            for row in requests:
                session.execute(self._delete_items, tuple(row))
            counts = {
                "host_streams": self._delete(session, self._delete_streams, hosts, values),
                "enrollment_reports": self._delete(session, self._delete_reports, reports, values),
                "renewal_requests": sum(session.execute(self._delete_request, tuple(row)) for row in requests),
                "certificate_watchers": sum(
                    session.execute(self._delete_watcher, (*row, values["before"])) for row in watchers
                ),
            }
            self._delete(session, self._delete_statuses, hosts)
            self._delete(session, self._delete_sequences, hosts)
            return Done(counts)

        if not (hosts or reports or requests or watchers):
            return {"host_streams": 0, "enrollment_reports": 0, "renewal_requests": 0, "certificate_watchers": 0}
        return await self._writer.write(change, ())

    async def _prune_rollouts(self, values: Mapping[str, int]) -> dict[str, int]:
        """One at a time, with all of its certificates: it may be as large as the fleet."""
        rows = await self._rows(self._rollouts, values, 1)

        def change(session: Session) -> Done[int]:
            for (rollout_id,) in rows:
                session.execute(self._delete_rollout_items, (rollout_id,))
            return Done(sum(session.execute(self._delete_rollout, (rollout_id,)) for (rollout_id,) in rows))

        return {"rollouts": await self._writer.write(change, ()) if rows else 0}

    async def _old_hosts(self, before: int, most: int) -> list[str]:
        """Some hosts that were seen last before then; none when all have been looked at."""
        while rows := await self._rows(self._next_hosts, {"after": self._host_passed}, most):
            self._host_passed = rows[-1][0]
            old = [host for host, last_seen in rows if last_seen < before]
            if old:
                return old
        self._host_passed = ""
        return []

    async def _rows(self, statement: Statement, values: Mapping[str, object], most: int) -> list[Row]:
        with reading():
            rows = await self._database.all(statement.at_most(most), values)
        return rows[:most]

    def _deleting(self, table: Table, key: str, *also: ColumnElement[bool]) -> Statement:
        ids: list[BindParameter[Any]] = [bindparam(f"id_{n}") for n in range(_IDS)]
        return self._database.compiler(delete(table).where(table.c[key].in_(ids), *also))

    @staticmethod
    def _delete(
        session: Session, statement: Statement, ids: Sequence[str], values: Mapping[str, object] | None = None
    ) -> int:
        count = 0
        for start in range(0, len(ids), _IDS):
            part = ids[start : start + _IDS]
            filled = {f"id_{n}": part[min(n, len(part) - 1)] for n in range(_IDS)}
            count += session.execute(statement, statement.arguments({**(values or {}), **filled}))
        return count
