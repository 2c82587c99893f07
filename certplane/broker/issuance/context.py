"""The ports that issuance works through, together, so that its parts are built from one value."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from certplane.broker.budget.model import IssuerLimits
from certplane.broker.budget.ports import BudgetLedger
from certplane.broker.issuance.condition import ConditionTeller
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.holds import HoldStore
from certplane.broker.members.ports import LastingLease, Lease
from certplane.broker.model import CertificateRecord, Order, Profile
from certplane.broker.ports import (
    AuditLog,
    CertificateQuery,
    CertificateStore,
    ChallengeSolver,
    DenialRecorder,
    DenyList,
    EventRecorder,
    IdentityLedger,
    IdentityTrust,
    Issuer,
    KeyLedger,
    Meter,
    NoPreflight,
    NullMeter,
    OrderPreflight,
    OrderStore,
    Policy,
    PolicySource,
    RenewalTimes,
    Revoker,
    SharedOrders,
    StoredRenewalTimes,
)
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock


def known_profile(policy: Policy, identity: str, profile: str) -> Profile | None:
    """The profile with the identity's names; as it is written, if the policy doesn't give it to it."""
    return policy.granted(identity, profile) or policy.find_profile(profile)


@dataclass(frozen=True, slots=True)
class IssuancePorts:
    """Everything outside.

    `issuers` are by name, first the one of profiles that name none; `revokers` by the same names. `new_id` names
    certificates and events (`certplane.runtime.ids`); `rng` spreads retries and decides nothing else.
    """

    policies: PolicySource
    orders: OrderStore
    shared_orders: SharedOrders
    certificates: CertificateStore
    keys: KeyLedger
    identities: IdentityLedger
    deny_list: DenyList
    trust: IdentityTrust
    audit: AuditLog
    denials: DenialRecorder
    repeats: EventRecorder
    issuers: Mapping[str, Issuer]
    revokers: Mapping[str, Revoker]
    solver: ChallengeSolver
    holds: HoldStore
    ledger: BudgetLedger
    conditions: ConditionTeller
    epoch: RetryEpoch
    clock: Clock
    new_id: Callable[[], str]
    budgets: Mapping[str, IssuerLimits] = field(default_factory=dict)
    """The CAs' limits by issuer; of one that isn't here nothing is counted."""
    renewals: RenewalTimes = field(default_factory=StoredRenewalTimes)
    preflight: OrderPreflight = field(default_factory=NoPreflight)
    lease: Lease = field(default_factory=LastingLease)
    meter: Meter = field(default_factory=NullMeter)
    rng: random.Random = field(default_factory=random.SystemRandom)

    @property
    def policy(self) -> Policy | None:
        """The policy in force, if any."""
        try:
            return self.policies.current
        except RefusalError:
            return None

    def profile_of(self, order: Order) -> Profile | None:
        """The order's profile as policy has it now, allowed or not."""
        policy = self.policy
        return known_profile(policy, order.identity, order.profile) if policy is not None else None

    async def newest_certificate(self, identity: str, profile: str) -> CertificateRecord | None:
        """The certificate in use, as far as is known.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        query = CertificateQuery(identity, profile=profile, limit=1)
        return next(iter(await self.certificates.list_certificates(query)), None)

    def issuers_of(self, profile: Profile) -> tuple[str, ...]:
        """The issuers that a profile's certificates may come from, in its order; those that there are."""
        if not profile.issuers:
            return (next(iter(self.issuers)),)
        return tuple(name for name in profile.issuers if name in self.issuers)
