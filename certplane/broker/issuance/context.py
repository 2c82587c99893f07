"""The ports that issuance works through, together, so that its parts are built from one value."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from certplane.broker.ports import (
    AuditLog,
    CertificateStore,
    ChallengeSolver,
    DenialRecorder,
    IdentityLedger,
    Issuer,
    KeyLedger,
    Meter,
    NullMeter,
    OrderStore,
    PolicySource,
    Revoker,
)
from certplane.runtime.clock import Clock

__all__ = ["IssuancePorts"]


@dataclass(frozen=True, slots=True)
class IssuancePorts:
    """Everything outside.

    `new_id` names certificates and events (`certplane.runtime.ids`); `rng` spreads retries and decides nothing else.
    """

    policies: PolicySource
    orders: OrderStore
    certificates: CertificateStore
    keys: KeyLedger
    identities: IdentityLedger
    audit: AuditLog
    denials: DenialRecorder
    issuer: Issuer
    revoker: Revoker
    solver: ChallengeSolver
    clock: Clock
    new_id: Callable[[], str]
    meter: Meter = field(default_factory=NullMeter)
    rng: random.Random = field(default_factory=random.SystemRandom)
