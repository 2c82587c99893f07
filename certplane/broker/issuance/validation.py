"""The DNS part of an order: its TXT records journalled, written, seen everywhere, answered for, and removed.

Rules:

- A record is journalled before it is written, by name and value, and again once the provider has given it an id, so
  that a restart finds and removes it whenever the process ends.
- A challenge is answered only after every authoritative server that answers shows its value: failed validations lock
  a name at the CA. If that never happens, nothing is answered.
- Removal never fails an order. What could not be removed stays journalled and is tried again at the next start.
- What an order at the CA that was left needed goes before another's is written: providers may have room for two values.
- Orders of overlapping names can be given the same challenge: whoever is last to need a record removes it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.progress import cut
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import DnsChallenge, OrderState, Profile, TxtRecord
from certplane.broker.ports import OrderChange
from certplane.errors import RefusalError

logger = logging.getLogger(__name__)

_REMOVAL: Final = timedelta(seconds=1)
"""Between looks at whether others' removals of a record are over."""


def merge_records(journalled: Iterable[TxtRecord], latest: Iterable[TxtRecord]) -> tuple[TxtRecord, ...]:
    """The journal after `latest` became known: by name and value, what has an id wins over what hasn't.

    Records of the journal that aren't among the latest stay, since they may stand and have to be removed.
    """
    merged: dict[tuple[str, str], TxtRecord] = {}
    for record in (*journalled, *latest):
        known = merged.get((record.name, record.value))
        if known is None or record.record_id or (record.zone and not known.record_id):
            merged[record.name, record.value] = record
    return tuple(merged.values())


class ChallengeRecords:
    """Writes and removes orders' records, knowing which of them other orders still need."""

    def __init__(self, ports: IssuancePorts, settings: IssuanceSettings) -> None:
        self._ports = ports
        self._settings = settings
        self._needed: dict[str, frozenset[tuple[str, str]]] = {}
        self._users = Counter[tuple[str, str]]()
        """How many orders need a record: to look at each order for each record grows with the square of a burst."""
        self._writing: dict[str, Sequence[TxtRecord]] = {}
        """What is being written for an order, until it is known that the order was this broker's all the while.

        As planned, and so found by its value: an id may be that of a record which an heir has removed.
        """

    def need(self, order_id: str, records: Iterable[TxtRecord]) -> None:
        """The order is about to use these records: nobody else removes them."""
        self.release(order_id)
        if needed := frozenset((record.name, record.value) for record in records):
            self._needed[order_id] = needed
            self._users.update(needed)

    async def publish(
        self,
        journal: Journal,
        challenges: Sequence[DnsChallenge],
        profile: Profile,
        timeout: Callable[[timedelta], timedelta],
        step: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Write the records that answer `challenges`, and wait until they are seen; each part is journalled first.

        `timeout` gives each part what it may take at most, or less, and `step` its failpoints and measure.
        """
        solver, settings = self._ports.solver, self._settings
        planned = await solver.plan(challenges, profile, timeout(settings.dns_timeout))
        wanted = {(record.name, record.value) for record in planned}
        journalled = merge_records(journal.order.txt_records, planned)
        records = [record for record in journalled if (record.name, record.value) in wanted]
        self.need(journal.order.order_id, records)
        with step("journal_records"):
            await journal.write(OrderChange(state=OrderState.VALIDATING, txt_records=journalled))
        if len(records) < len(journalled):
            left = await self._remove_unneeded(journal)
            await journal.write(OrderChange(txt_records=(*left, *records)))
        await self._see_removals_out(journal, records)
        with step("present"):
            self._writing[journal.order.order_id] = planned
            written = await solver.present(records, timeout(settings.dns_timeout))
        with step("journal_record_ids"):
            await journal.write(OrderChange(txt_records=merge_records(journal.order.txt_records, written)))
        self._writing.pop(journal.order.order_id, None)
        with step("propagate"):
            silent = await solver.wait_until_visible(
                written, timeout(settings.propagation_timeout), lambda text: journal.note(trouble=cut(text))
            )
        for line in silent:
            journal.note(trouble=cut(f"continues without a name server that does not answer: {line}"))
            self._ports.meter.count(metrics.SERVERS_SILENT)
            fields = {"order_id": journal.order.order_id}
            logger.warning(
                "a name server does not answer; the order continues without it: %s", line, extra={"fields": fields}
            )

    async def _see_removals_out(self, journal: Journal, records: Sequence[TxtRecord]) -> None:
        """Wait, for a while, until no other order is ending that has one of these records and found nobody to need it.

        From now on the order lists them, so that who looks leaves them alone; who has looked already removes them.
        """
        if not self._ports.lease.shared:
            return
        until = self._ports.clock.monotonic() + self._settings.dns_timeout.total_seconds()
        while await journal.leaving(records) and self._ports.clock.monotonic() < until:
            await self._ports.clock.sleep(_REMOVAL)

    def pop_late(self, runs: Callable[[str], object]) -> list[tuple[str, Sequence[TxtRecord]]]:
        """What may have been written for an order after another broker had taken it; `runs` says if it hasn't.

        This broker stood still between its look at its lease and the write.
        """
        late = [(order_id, records) for order_id, records in self._writing.items() if not runs(order_id)]
        for order_id, _ in late:
            del self._writing[order_id]
        return late

    async def remove_late(self, order_id: str, records: Sequence[TxtRecord], stands: Callable[[], bool]) -> None:
        """Remove such records once no open order lists them: who has the order removes what it lists.

        Nothing is done before `stands()`. Ends early when the order is run here again.
        """
        left, failures = list(records), 0
        while left:
            failures += 1
            await self._ports.clock.sleep(self._settings.retry.wait(failures, self._ports.rng))
            if order_id in self._needed:
                return
            if not stands():
                continue
            try:
                needed = await self._ports.shared_orders.needed_records(left)
                late = [record for record in left if (record.name, record.value) not in {*needed, *self._users}]
                stuck = await self._ports.solver.remove(late, self._settings.dns_timeout) if late else ()
            except Exception as error:
                # Bugs too: what this task raises would end those of all orders.
                bug = None if isinstance(error, RefusalError) else error
                logger.warning("could not remove what was written too late; will retry: %s", error, exc_info=bug)
                continue
            for record in late:
                logger.warning(
                    "a TXT record was written after another broker had ended the order; it %s",
                    "could not be removed; will retry" if record in stuck else "was removed",
                    extra={"fields": _fields(order_id, record)},
                )
            left = [record for record in left if record not in late or record in stuck]

    def release(self, order_id: str) -> None:
        """The order uses no record any more."""
        for record in self._needed.pop(order_id, ()):
            self._users[record] -= 1
            if not self._users[record]:
                del self._users[record]

    async def remove(self, journal: Journal) -> tuple[TxtRecord, ...]:
        """Remove what an order lists and no other needs; returns what still stands and is the order's to remove."""
        order_id = journal.order.order_id
        self.release(order_id)
        left = await self._remove_unneeded(journal)
        self._writing.pop(order_id, None)
        return left

    async def _remove_unneeded(self, journal: Journal) -> tuple[TxtRecord, ...]:
        """As `remove`, but what the order itself needs stays, and isn't returned."""
        order = journal.order
        mine = [record for record in order.txt_records if (record.name, record.value) not in self._users]
        if mine and self._ports.lease.shared:
            needed = await journal.needed_elsewhere(mine)
            mine = [record for record in mine if (record.name, record.value) not in needed]
        if not mine:
            return ()
        left: Sequence[TxtRecord] = await self._ports.solver.remove(mine, self._settings.dns_timeout)
        for record in left:
            self._ports.meter.count(metrics.RECORDS_LEFT)
            logger.warning(
                "a TXT record could not be removed; will retry at the next start",
                extra={"fields": _fields(order.order_id, record)},
            )
        return tuple(left)


def _fields(order_id: str, record: TxtRecord) -> dict[str, str]:
    """What a line says of a record."""
    return {"order_id": order_id, "record_name": record.name, "record_value": record.value, "zone": record.zone}
