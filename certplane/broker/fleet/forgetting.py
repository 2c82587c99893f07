"""Hosts that are gone are forgotten when an operator says so, each with a reason.

Only one that nobody expects any more: policy has to have lost it first, so that no mistyped name makes a host that is
merely down disappear from everybody's view. What stays is what proves something: certificates, audit events, keys, and
which identity certificates it has used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.fleet.ports import HostRemoval
from certplane.broker.fleet.view import FleetView, HostNotFoundError, HostView
from certplane.broker.fleet.watching import Watchers
from certplane.broker.model import Caller
from certplane.broker.ports import PolicySource
from certplane.broker.renewal.model import InForce
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted


class HostStaysError(Exception):
    """The host can't be forgotten; the text says why, and what to do first."""


@dataclass(frozen=True, slots=True)
class ForgottenHost:
    """What was known of it last, and how many of its certificates are valid still."""

    view: HostView
    valid_certificates: int


class HostForgetting:
    """Forgets hosts."""

    def __init__(
        self,
        *,
        view: FleetView,
        store: HostRemoval,
        plans: RenewalPlanStore,
        policy: PolicySource,
        watchers: Watchers,
        clock: Clock,
        trail: AuditTrail,
    ) -> None:
        self._view = view
        self._store = store
        self._plans = plans
        self._policy = policy
        self._watchers = watchers
        self._clock = clock
        self._trail = trail

    async def forget(self, caller: Caller, request_id: str, name: str, reason: str) -> ForgottenHost:
        """Forget the identity of this name, durable and audited.

        Raises:
            HostNotFoundError: nothing is known of it.
            HostStaysError: policy still has it, or it is connected.
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        policy = self._policy.current
        if policy.find_grant(name) is not None or policy.find_host(name) is not None:
            raise HostStaysError("the policy still has it: remove it from policy.yml, and reload that, first")
        view = await self._view.last_known(name)
        in_force = await self._plans.in_force(name, self._clock.now())
        if view.record.stream is None and not in_force:
            raise HostNotFoundError
        if view.broker is not None:
            at = f"{view.broker.name}, {view.broker.address}"
            raise HostStaysError(f"it is connected (at {at}): stop its certplane-agent, or deny its identity, first")
        event = self._event(caller, request_id, name, reason, in_force)
        if not await self._store.forget_host(name, view.record.stream, self._clock.now(), [event]):
            raise HostStaysError("it has come back just now: see whether it is gone, and ask again")
        self._watchers.host_elsewhere(name, self._clock.now())
        return ForgottenHost(view, len(in_force))

    def _event(
        self, caller: Caller, request_id: str, name: str, reason: str, in_force: Sequence[InForce]
    ) -> AuditEvent:
        valid = counted(len(in_force), "valid certificate") if in_force else "no valid certificate"
        return self._trail.of_caller(caller, request_id).event(
            AuditEventType.HOST_FORGOTTEN,
            severity=AuditSeverity.WARNING,
            decision=AuditDecision.ALLOW,
            reason=f"{name}, with {valid}: {reason}",
            count=len(in_force),
        )
