"""A program that writes to the store as fast as it can and says what was acknowledged, until somebody kills it.

Each line of its output is the id of an event or order that a store has acknowledged, written when it was.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.ports import DurableLimits
from certplane.broker.store import open_stores
from certplane.runtime.clock import SystemClock
from certplane.runtime.ids import TimeOrderedIds
from tests.support.stores import draft

CALLERS = 64


async def storm(kind: str, path: Path, url: str) -> None:
    """Never returns."""
    clock = SystemClock()
    new_id = TimeOrderedIds(clock)

    def event() -> AuditEvent:
        return AuditEvent(new_id(), clock.now(), AuditEventType.CERTIFICATE_AUTHORIZED, reason="x" * 200)

    audit = SpillFallback("fail_closed", path.with_name("spill.jsonl"))
    async with open_stores(driver=kind, path=path, url=url, audit=audit, clock=clock) as stores:  # type: ignore[arg-type]

        async def caller(number: int) -> None:
            while True:
                events = [event() for _ in range(number % 3 + 1)]
                if number % 8:
                    await stores.audit.append(events)
                    done = [one.event_id for one in events]
                else:
                    opened = await stores.orders.open_order(draft(public_key_sha256=new_id()), DurableLimits(), events)
                    done = [opened.order.order_id, *(one.event_id for one in events)]
                os.write(1, "".join(f"{one}\n" for one in done).encode())

        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(caller(number))


if __name__ == "__main__":
    asyncio.run(storm(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
