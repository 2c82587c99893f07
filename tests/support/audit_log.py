"""An audit log that is proven: in its database, and as the lines of an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from certplane.broker.proof import lines
from certplane.broker.proof.checkpoints import Signer, Verifier
from certplane.broker.proof.reading import DatabaseVerification, all_checkpoints
from certplane.broker.proof.sealing import Sealing
from certplane.broker.proof.verify import Finding, Verified
from certplane.broker.store.audit_records import record_of
from tests.fakes.audit import FakeMeter
from tests.support.stores import StoreHarness

SECRET: Final = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER_SECRET: Final = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
KEYS: Final = Signer(SECRET).public_keys


def sealing(store: StoreHarness, secret: str = SECRET, meter: FakeMeter | None = None) -> Sealing:
    """Signs checkpoints of a store's chain."""

    async def read() -> str:
        return secret

    return Sealing(store.stores.audit_proof, store.clock, read, meter or FakeMeter())


async def verified(store: StoreHarness, keys: Sequence[str] = KEYS) -> tuple[list[Finding], Verified]:
    """What is wrong with the log in the database, and the result."""
    verification = DatabaseVerification(store.stores.audit_proof, Verifier(keys))
    found = [each async for page in verification.run() for each in page]
    assert verification.result.finding_count == len(found)
    return found, verification.result


async def exported(store: StoreHarness) -> list[str]:
    """The whole log as lines."""
    proof: Any = store.stores.audit_proof
    events = [lines.event_line(event, record_of) for event in await proof.events(0, 10_000)]
    return [
        lines.head_line(partial=False),
        *map(lines.chain_line, await proof.chains()),
        *map(lines.checkpoint_line, await all_checkpoints(proof)),
        *events,
        lines.end_line(len(events)),
    ]


def verified_lines(said: Sequence[str], keys: Sequence[str] = KEYS) -> tuple[list[Finding], Verified]:
    """What is wrong with an exported log, and the result."""
    verification = lines.LinesVerification(Verifier(keys), record_of)
    found = list(verification.run(said))
    assert verification.result.finding_count == len(found)
    return found, verification.result
