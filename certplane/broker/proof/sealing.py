"""Checkpoints are made: of the own chain every five minutes in which something came, and of programs that have ended.

The end of an own chain gets one at a stop. A broker that was killed leaves its end without one, and so does each
command: a broker that goes on (the role `upkeep`) follows such a chain from its last checkpoint, and gives it one if it
holds. With a key configured, nothing is sealed that isn't signed: what can't be signed now is sealed later.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.proof.chain import Chain, Head, next_hash
from certplane.broker.proof.checkpoints import Checkpoint, CheckpointKeyError, Signer
from certplane.broker.proof.ports import AuditProof, Levels
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")

_INTERVAL: Final = timedelta(minutes=5)
_LOOK: Final = timedelta(minutes=1)
_PAGE: Final = 512
_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Sealing:
    """Seals chains. For the event loop's thread."""

    def __init__(
        self, proof: AuditProof, clock: Clock, read_secret: Callable[[], Awaitable[str]] | None, meter: Levels
    ) -> None:
        """`read_secret` gives the keys; None: checkpoints are not signed."""
        self._proof = proof
        self._clock = clock
        self._read_secret = read_secret
        self._sealed: Head | None = None
        """Where the own chain had its last checkpoint."""
        self._meter = meter
        self.failing = ""
        """Why the log gets no checkpoint now; empty if it does."""
        self.changed = ""
        """An event that doesn't follow from the one before it, as it was found; empty if none was."""
        self._show()

    async def run(self) -> None:
        """Seal the own chain now and then, until cancelled."""
        while True:
            await self._clock.sleep(_INTERVAL)
            await self.seal_own()

    async def run_for_others(self) -> None:
        """Seal chains of programs that have ended, until cancelled."""
        while True:
            await self._guarded(self._seal_ended)
            await self._clock.sleep(_LOOK)

    async def seal_own(self, *, ended: bool = False) -> None:
        """Give the own chain a checkpoint, if there is something new; `ended`: its last one. Never raises."""

        async def seal() -> None:
            found = await self._proof.head(self._sealed)
            if found is not None:
                head, sequence = found
                await self._seal(Checkpoint(head.chain_id, head.number, sequence, self._now(), head.hash), ended=ended)
                self._sealed = head
            elif ended and self._sealed is not None:
                await self._proof.seal(None, ended=self._sealed.chain_id)

        await self._guarded(seal)

    async def _seal_ended(self) -> None:
        while chains := await self._proof.ended():
            for chain in chains:
                await self._seal_one(chain)

    async def _seal_one(self, chain: Chain) -> None:
        """Follow a chain to its end, from its last checkpoint, and seal it; what does not hold is left as it is."""
        chain_id = chain.start.chain_id
        last = await self._proof.last_checkpoint(chain_id)
        number, digest, sequence = 0, chain.start.genesis, chain.first_sequence - 1
        if last is not None:
            number, digest, sequence = last.number, last.hash, last.sequence
        begun = number
        while events := await self._proof.events(sequence, _PAGE, chain_id=chain_id):
            for event in events:
                if event.number != number + 1 or next_hash(digest, number + 1, event) != event.hash:
                    self.changed = f"event {event.event_id} of chain {chain_id} does not follow from the one before it"
                    self._show()
                    _log.error("the audit log was changed: %s; see `certplane-broker audit verify`", self.changed)
                    await self._proof.seal(None, ended=chain_id)
                    return
                number, digest, sequence = number + 1, event.hash, event.sequence
        if number == begun:
            await self._proof.seal(None, ended=chain_id)
        else:
            await self._seal(Checkpoint(chain_id, number, sequence, self._now(), digest), ended=True)

    async def _seal(self, checkpoint: Checkpoint, *, ended: bool) -> None:
        if self._read_secret is not None:
            checkpoint = Signer(await self._read_secret()).sign(checkpoint)
        await self._proof.seal(checkpoint, ended=checkpoint.chain_id if ended else None)
        # Whoever collects logs has the end of each chain outside of the database.
        _log.info(
            "audit checkpoint",
            extra={
                "fields": {
                    "chain": checkpoint.chain_id,
                    "number": checkpoint.number,
                    "sha256": checkpoint.hash.hex(),
                    "key": checkpoint.key_id,
                }
            },
        )

    async def _guarded(self, seal: Callable[[], Awaitable[None]]) -> None:
        try:
            await seal()
        except RefusalError as error:
            self._fails(error.refusal.message)
        except CheckpointKeyError as error:
            self._fails(f"the secret of audit.checkpoint_key_secret {error}")
        else:
            self._fails("")

    def _fails(self, why: str) -> None:
        """Say so once, until it works again or something else is wrong."""
        if why and why != self.failing:
            _log.error("the audit log gets no checkpoint: %s; will retry", why)
        self.failing = why
        self._show()

    def _show(self) -> None:
        for why, said in (("no_checkpoint", self.failing), ("changed", self.changed)):
            self._meter.level(metrics.AUDIT_UNPROVEN, 1 if said else 0, why=why)

    def _now(self) -> int:
        return (self._clock.now() - _EPOCH) // _MICROSECOND
