"""The audit log as a broker uses it: what counts, what seals, and what shows and proves it to operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from certplane.broker.audit import DenialCoalescer, RepeatCoalescer
from certplane.broker.background import running
from certplane.broker.ports import Meter, SecretSource
from certplane.broker.proof.checkpoints import HOW_TO_MAKE, CheckpointKeyError, Signer, Verifier
from certplane.broker.proof.sealing import Sealing
from certplane.broker.services.audit import AuditServicer
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.broker.store.audit_records import record_of
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock


@asynccontextmanager
async def coalescing(
    stores: Stores, clock: Clock, new_id: Callable[[], str], meter: Meter
) -> AsyncIterator[tuple[DenialCoalescer, RepeatCoalescer]]:
    """What counts repeated audit events, after the counts of a broker that was killed have become events."""
    await stores.repeats.recover()
    denials = DenialCoalescer(stores.audit, clock, new_id)
    repeats = RepeatCoalescer(stores.audit, stores.repeats, clock, new_id, meter=meter)
    async with denials.running(), repeats.running():
        yield denials, repeats


@asynccontextmanager
async def auditing(
    settings: BrokerSettings,
    stores: Stores,
    secrets: SecretSource,
    *,
    clock: Clock,
    new_id: Callable[[], str],
    meter: Meter,
) -> AsyncIterator[tuple[DenialCoalescer, RepeatCoalescer, Sealing]]:
    """What counts repeated events, and what gives the audit log its checkpoints, the last one at the end."""
    name = settings.audit.checkpoint_key_secret
    seals = Sealing(stores.audit_proof, clock, partial(secrets.read, name) if name else None, meter)
    try:
        async with (
            running(seals.run(), "audit checkpoints"),
            coalescing(stores, clock, new_id, meter) as (denials, repeats),
        ):
            yield denials, repeats, seals
    finally:
        await seals.seal_own(ended=True)


def audit_service(
    settings: BrokerSettings,
    stores: Stores,
    secrets: SecretSource,
    *,
    identities: Callable[[str], frozenset[str]],
    draining: Callable[[], bool],
    clock: Clock,
) -> AuditServicer:
    """The audit log for operators; the keys that are trusted are read anew for each check."""

    async def verifier() -> Verifier:
        return await trusted_keys(settings, secrets)

    return AuditServicer(
        stores.audit_reader,
        stores.audit_proof,
        read=record_of,
        verifier=verifier,
        identities=identities,
        draining=draining,
        clock=clock,
    )


async def trusted_keys(settings: BrokerSettings, secrets: SecretSource) -> Verifier:
    """The keys that sign checkpoints, and those that did before.

    Raises:
        RefusalError: the secret can't be read, or holds no key.
    """
    name, keys = settings.audit.checkpoint_key_secret, settings.audit.checkpoint_keys
    if not name:
        return Verifier(keys)
    try:
        return Verifier([*Signer(await secrets.read(name)).public_keys, *keys])
    except CheckpointKeyError as error:
        why = f"the secret of audit.checkpoint_key_secret {error}: {HOW_TO_MAKE}"
        raise RefusalError(Reason.AUDIT_UNAVAILABLE, why) from error
