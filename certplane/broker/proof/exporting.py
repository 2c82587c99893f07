"""The log of the database as lines (`lines`), a page at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Final

from certplane.broker.proof import lines
from certplane.broker.proof.lines import Reads
from certplane.broker.proof.ports import AuditProof
from certplane.broker.proof.reading import all_checkpoints

_PAGE: Final = 256


async def export(
    proof: AuditProof,
    place_of: Callable[[datetime], Awaitable[int]],
    read: Reads,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
) -> AsyncGenerator[str, None]:
    """The lines, without their ends.

    With a time, it is the part of the log from the first event of that time on to the last one before the other: all
    that stands between, so that the chains go on.

    Raises:
        RefusalError: STORE_UNAVAILABLE.
    """
    place = 0 if start is None else await place_of(start) - 1
    # First the checkpoints: all of the events that they are about are there, and are exported.
    checkpoints = await all_checkpoints(proof)
    chains = await proof.chains()
    until = await proof.newest()
    if end is not None:
        until = min(until, await place_of(end) - 1)
    yield lines.head_line(partial=start is not None or end is not None)
    for chain in chains:
        yield lines.chain_line(chain)
    for checkpoint in checkpoints:
        yield lines.checkpoint_line(checkpoint)
    count = 0
    known = {chain.start.chain_id for chain in chains}
    while place < until and (events := await proof.events(place, _PAGE)):
        for event in events:
            if event.sequence > until:
                break
            if event.chain_id is None or event.chain_id in known:  # one that has begun since is of the next export
                yield lines.event_line(event, read)
                count += 1
        place = events[-1].sequence
    yield lines.end_line(count)
