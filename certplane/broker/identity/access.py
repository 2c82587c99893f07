"""Who may call what: one row per method of every service that the broker serves.

A method that is served and has no row here is refused: a test finds each method of each served service in `METHODS`,
so that nobody adds one without deciding who may call it. The rows of our own services say what the comments of the
proto files say ("Callers: ..."); a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from certplane.broker.model import Caller, IdentityKind
from certplane.errors import Reason, RefusalError


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one method.

    Attributes:
        kinds: The kinds of identities that may call it.
        cost: Tokens that a call takes out of the caller's bucket.
        issuing: Whether it may start an order: refused while the broker drains.
        roles: Of which the caller must have one; none are asked for where it is empty. Where operator is one, admin is.
    """

    kinds: frozenset[IdentityKind]
    cost: int = 1
    issuing: bool = False
    roles: frozenset[str] = frozenset()


_ANYONE: Final = Access(frozenset(IdentityKind))
_HOLDERS: Final = frozenset({IdentityKind.HOST, IdentityKind.SERVICE})
_OPERATOR_KIND: Final = frozenset({IdentityKind.OPERATOR})
_OPERATORS: Final = Access(_OPERATOR_KIND)
_STAFF: Final = frozenset({IdentityKind.OPERATOR, IdentityKind.SERVICE})
_VIEWERS: Final = Access(_STAFF, roles=frozenset({"viewer", "operator"}))
"""An operator may do what a viewer may."""
_OPERATING: Final = Access(_STAFF, roles=frozenset({"operator"}))


def _rows(service: str, rows: Mapping[str, Access]) -> dict[str, Access]:
    return {f"/{service}/{method}": access for method, access in rows.items()}


METHODS: Final[Mapping[str, Access]] = {
    **_rows(
        "certplane.v1.EnrollmentService",
        {
            "GetIdentity": _ANYONE,
            "GetTrustBundle": _ANYONE,
            "ReportEnrollment": _ANYONE,
            "CreateBootstrapToken": Access(_OPERATOR_KIND, cost=20, roles=frozenset({"admin"})),
            "DenyIdentity": Access(_OPERATOR_KIND, roles=frozenset({"admin"})),
        },
    ),
    **_rows(
        "certplane.v1.CertificateService",
        {
            "IssueCertificate": Access(_HOLDERS, issuing=True),
            "RenewCertificate": Access(_HOLDERS, issuing=True),
            "GetOrder": Access(_HOLDERS),
            "WatchOrder": Access(_HOLDERS),
            "GetCertificate": Access(_HOLDERS),
            "ListCertificates": Access(_HOLDERS),
            "RevokeCertificate": Access(_HOLDERS),
        },
    ),
    **_rows(
        "certplane.v1.RenewalService",
        {
            "StreamRenewalStatus": Access(frozenset({IdentityKind.HOST})),
            "WatchRenewals": _VIEWERS,
            "WatchMyCertificates": Access(frozenset({IdentityKind.SERVICE})),
        },
    ),
    **_rows(
        "certplane.v1.FleetService",
        {
            "ListHosts": _VIEWERS,
            "GetHost": _VIEWERS,
            "RequestRenewal": _OPERATING,
            "ListBrokers": _VIEWERS,
            "SummarizeFleet": _VIEWERS,
            "ListFleetCertificates": _VIEWERS,
            "GetRenewalRequest": _VIEWERS,
            "ForgetHost": _OPERATING,
            "RevokeCertificate": _OPERATING,
        },
    ),
    **_rows(
        "certplane.v1.PolicyService",
        {
            "GetPolicy": _VIEWERS,
            "PlanPolicy": _VIEWERS,
            "ReloadPolicy": _OPERATING,
            "ListPolicyVersions": _VIEWERS,
        },
    ),
    **_rows("certplane.v1.OrderService", {"ListOrders": _VIEWERS, "WatchOrders": _VIEWERS}),
    **_rows(
        "certplane.v1.AuditService",
        {
            "ListAuditEvents": _VIEWERS,
            "TailAuditEvents": _VIEWERS,
            "VerifyAuditLog": _VIEWERS,
            "ExportAuditLog": _VIEWERS,
        },
    ),
    **_rows(
        "certplane.v1.BrokerService",
        {"ReloadBrokers": _OPERATING, "DrainBroker": _OPERATING, "PlanTrustBundle": _VIEWERS},
    ),
    **_rows("certplane.v1.BudgetService", {"GetBudget": _VIEWERS, "ForecastOrders": _VIEWERS}),
    **_rows(
        "certplane.v1.RolloutService",
        {
            "PlanRollout": _VIEWERS,
            "CreateRollout": _OPERATING,
            "GetRollout": _VIEWERS,
            "ListRollouts": _VIEWERS,
            "ListRolloutItems": _VIEWERS,
            "WatchRollout": _VIEWERS,
            "PauseRollout": _OPERATING,
            "ResumeRollout": _OPERATING,
            "AbortRollout": _OPERATING,
            "ApproveRollout": _OPERATING,
            "FinishRollout": _OPERATING,
        },
    ),
    **_rows("certplane.v1.IncidentService", {"ListIncidents": _VIEWERS, "GetIncident": _VIEWERS}),
    **_rows("grpc.health.v1.Health", {"Check": _ANYONE, "List": _ANYONE, "Watch": _ANYONE}),
    **_rows("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": _ANYONE}),
    **_rows("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _ANYONE}),
    **_rows(
        "grpc.channelz.v1.Channelz",
        dict.fromkeys(
            (
                "GetTopChannels",
                "GetServers",
                "GetServer",
                "GetServerSockets",
                "GetChannel",
                "GetSubchannel",
                "GetSocket",
            ),
            _OPERATORS,
        ),
    ),
}


def _held(caller: Caller) -> frozenset[str]:
    """The caller's roles; an admin may do what an operator may."""
    roles = frozenset(caller.roles)
    return roles | {"operator"} if "admin" in roles else roles


def check_access(access: Access | None, caller: Caller) -> Access:
    """The rules of the method, if `caller` may call it; None stands for a method without a row.

    Raises:
        RefusalError: ROLE_REQUIRED.
    """
    if access is None:
        raise RefusalError(Reason.ROLE_REQUIRED, "nobody may call this method")
    if caller.kind not in access.kinds:
        allowed = " and ".join(sorted(f"{kind}s" for kind in access.kinds))
        raise RefusalError(
            Reason.ROLE_REQUIRED, f"only {allowed} may call this method; the caller is of the kind {caller.kind}"
        )
    if access.roles and access.roles.isdisjoint(_held(caller)):
        wanted = " or ".join(sorted(access.roles))
        raise RefusalError(
            Reason.ROLE_REQUIRED, f"this method requires the role {wanted}, which the policy doesn't give to the caller"
        )
    return access
