"""A log in the database, proven while it is written and pruned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from certplane.broker.proof.chain import LoggedEvent
from certplane.broker.proof.checkpoints import Checkpoint, Verifier
from certplane.broker.proof.ports import AuditProof
from certplane.broker.proof.verify import Finding, Verification, Verified

_PAGE = 512


async def all_checkpoints(proof: AuditProof, chain_id: int | None = None) -> list[Checkpoint]:
    """Those of all chains, or of one."""
    found: list[Checkpoint] = []
    after = (0, 0) if chain_id is None else (chain_id, 0)
    while some := await proof.checkpoints(after, _PAGE):
        found += [each for each in some if chain_id in (None, each.chain_id)]
        after = (some[-1].chain_id, some[-1].number)
        if chain_id is not None and after[0] != chain_id:
            break
    return found


class DatabaseVerification:
    """Reads the whole log once. For the event loop: a page at a time."""

    def __init__(self, proof: AuditProof, verifier: Verifier) -> None:
        self._proof = proof
        self._verifier = verifier
        self.result = Verified()
        """As far as it has come."""

    async def run(self) -> AsyncGenerator[list[Finding], None]:
        """What is wrong with each page of the log, and after the last one with the whole.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        # First the checkpoints, then the events: one of an event that isn't there yet would be of a log cut off.
        checkpoints = await all_checkpoints(self._proof)
        log = Verification(await self._proof.chains(), (), self._verifier)
        self.result = log.result
        for start in range(0, len(checkpoints), _PAGE):
            log.learn(checkpoints[start : start + _PAGE])
            await asyncio.sleep(0)  # years of them hold the loop for a while
        place, until = 0, await self._proof.newest()
        while place < until and (events := await self._proof.events(place, _PAGE)):
            found: list[Finding] = []
            for event in events:
                async with aclosing(self._before(log, event)) as late:
                    async for each in late:
                        found += log.read(each)
                found += log.read(event)
            place = events[-1].sequence
            yield found
        yield log.end()

    async def _before(self, log: Verification, event: LoggedEvent) -> AsyncGenerator[LoggedEvent, None]:
        """Events of the same chain that became durable behind the reader's back, if some are missing."""
        chain_id = event.chain_id
        if chain_id is None:
            return
        after = log.gap(event)
        if after is not None or not log.knows(chain_id):
            # Pruned, or begun, since the chains were read.
            chain = await self._proof.chain(chain_id)
            if chain is not None:
                log.add(chain, await all_checkpoints(self._proof, chain_id))
            after = log.gap(event)
        while after is not None and after < event.sequence:
            late = [
                each for each in await self._proof.events(after, _PAGE, chain_id=chain_id)
                if each.sequence < event.sequence
            ]  # fmt: skip
            if not late:
                return
            for each in late:
                yield each
            after = late[-1].sequence
