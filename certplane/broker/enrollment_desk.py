"""`EnrollmentService`, put together for `app`."""

from __future__ import annotations

from certplane.broker.enrolling.denying import IdentityDenials
from certplane.broker.enrolling.tokens import BootstrapTokens, IdentityCa
from certplane.broker.events import AuditTrail
from certplane.broker.ports import EventRecorder, PolicySource, SecretSource
from certplane.broker.services.enrollment import EnrollmentServicer, PresentedTrust
from certplane.broker.store import Stores
from certplane.runtime.clock import Clock


def enrollment_service(
    stores: Stores,
    secrets: SecretSource,
    ca: IdentityCa | None,
    *,
    trust: PresentedTrust,
    policy: PolicySource,
    repeats: EventRecorder,
    clock: Clock,
    trail: AuditTrail,
) -> EnrollmentServicer:
    """How the broker sees a caller, and what an admin does about identities."""
    return EnrollmentServicer(
        trust=trust,
        policy=policy,
        enrollments=stores.enrollments,
        identities=stores.identities,
        repeats=repeats,
        tokens=BootstrapTokens(
            ca,
            secrets,
            policy=policy,
            deny_list=stores.deny_list,
            identities=stores.identities,
            audit=stores.audit,
            clock=clock,
            trail=trail,
        ),
        denials=IdentityDenials(stores.deny_list, stores.identities, stores.certificates, clock=clock, trail=trail),
        clock=clock,
        trail=trail,
    )
