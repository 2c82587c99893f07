"""Identities that an admin shuts out over gRPC, by their name or by their certificates.

By its certificates a machine is replaced: all that are known of the name are denied, and the new machine's, which
nobody knows yet, is let in and becomes the active one (`certplane.broker.identity.first_use`). Nothing contests it:
the old machine is refused before anybody asks which of two holders it is. A contest that there was is over.

A call may be repeated: what is denied stays as it is. And when the new machine has come, the same words would shut out
that one. So a certificate that has just taken the place of a denied one is denied only if it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.model import Caller, CertificateRecord, DenyEntry, KnownIdentity
from certplane.broker.ports import CertificateQuery, DenyList
from certplane.config.values import canonical_identity_name
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_MOST_COUNTED: Final = 1000
_TRIES: Final = 5

Denied = Callable[[str, str, str], DenyEntry | None]
"""`DenyList.denied`."""


class DenyScope(Enum):
    """What is shut out."""

    NAME = auto()
    CERTIFICATES = auto()


class NotDeniedError(Exception):
    """It can't be shut out; `field` is the request's, the text says why, and what to do."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, slots=True)
class Denial:
    """What is shut out, or would be.

    Attributes:
        made: Entries that this makes.
        standing: Entries that were there before.
        active_serial: Of the certificate in use; empty where none is known.
        replaces_denied: Nothing is made: the certificate in use has taken the place of a denied one, and wasn't named.
        ends_contest: Whether the identity is contested, and no longer so after this.
        valid_certificates: How many of its certificates for services are valid.
    """

    made: tuple[DenyEntry, ...] = ()
    standing: tuple[DenyEntry, ...] = ()
    active_serial: str = ""
    replaces_denied: bool = False
    ends_contest: bool = False
    valid_certificates: int = 0


@dataclass(frozen=True, slots=True)
class DenyRequest:
    """What an admin asks for; `active_serial` names the certificate in use, if it isn't empty."""

    name: str
    scope: DenyScope
    reason: str
    active_serial: str = ""
    dry_run: bool = False


class IdentitySettlement(Protocol):
    """The identity ledger, for what changes it together with the deny-list."""

    def known(self, name: str) -> KnownIdentity | None:
        """As `IdentityLedger.known`."""
        ...

    async def settle(
        self,
        seen: KnownIdentity,
        settled: KnownIdentity,
        denied: Sequence[DenyEntry],
        allowed: Sequence[DenyEntry],
        events: Sequence[AuditEvent],
    ) -> bool:
        """Put `settled` in the place of `seen` and change the deny-list, durable; False if it was another by then."""
        ...


class CertificateList(Protocol):
    """Certificates that were issued."""

    async def list_certificates(self, query: CertificateQuery) -> Sequence[CertificateRecord]:
        """As `CertificateStore.list_certificates`."""
        ...


def decide(known: KnownIdentity | None, denied: Denied, request: DenyRequest) -> Denial:
    """What the request comes to. Pure; the entries that it makes aren't dated.

    Raises:
        NotDeniedError: another certificate is in use than the request says.
    """
    active = "" if known is None else known.active.serial_number
    if request.scope is DenyScope.NAME:
        standing = denied(request.name, "", "")
        if standing is not None and standing.name:
            return Denial(standing=(standing,), active_serial=active)
        return Denial(made=(DenyEntry(name=request.name, reason=request.reason),), active_serial=active)
    if request.active_serial and request.active_serial != active:
        in_use = f"that of the certificate in use is {active}" if active else "no certificate of it is known"
        raise NotDeniedError("active_serial_number", f"is another: {in_use}")
    if known is None:
        return Denial()
    uses = {use.certificate: use for use in (known.active, known.contest, *known.retired) if use is not None}
    found = {certificate: denied("", *certificate) for certificate in uses}
    there = tuple(entry for entry in found.values() if entry is not None)
    if there and not request.active_serial and found[known.active.certificate] is None:
        return Denial(standing=there, active_serial=active, replaces_denied=True)
    made = tuple(
        DenyEntry(issuer=issuer, serial_number=serial_number, reason=request.reason)
        for (issuer, serial_number), entry in found.items()
        if entry is None
    )
    return Denial(made, there, active, ends_contest=known.contest is not None)


class IdentityDenials:
    """Shuts identities out."""

    def __init__(
        self,
        deny_list: DenyList,
        identities: IdentitySettlement,
        certificates: CertificateList,
        *,
        clock: Clock,
        trail: AuditTrail,
    ) -> None:
        self._deny_list = deny_list
        self._identities = identities
        self._certificates = certificates
        self._clock = clock
        self._trail = trail

    async def deny(self, caller: Caller, request_id: str, request: DenyRequest) -> Denial:
        """Shut out what is asked for, durable and audited; brokers see it within a second.

        Raises:
            NotDeniedError: it can't be.
            RefusalError: STORE_UNAVAILABLE or AUDIT_UNAVAILABLE; nothing is changed then.
        """
        try:
            request = replace(request, name=canonical_identity_name(request.name))
        except ValueError as error:
            raise NotDeniedError("identity", f"isn't an identity's name: {error}") from error
        if request.name == caller.name:
            raise NotDeniedError("identity", "is your own: have another admin do that")
        denial = await self._denied(caller, request_id, request)
        query = CertificateQuery(request.name, usable_at=self._clock.now(), limit=_MOST_COUNTED)
        return replace(denial, valid_certificates=len(await self._certificates.list_certificates(query)))

    async def _denied(self, caller: Caller, request_id: str, request: DenyRequest) -> Denial:
        for _ in range(_TRIES):  # it may be used, and be another, meanwhile
            known = self._identities.known(request.name)
            denial = decide(known, self._deny_list.denied, request)
            now = self._clock.now()
            dated = tuple(replace(entry, create_time=now) for entry in denial.made)
            if request.dry_run or not (dated or denial.ends_contest):
                return denial
            denial = replace(denial, made=dated)
            events = [self._event(caller, request_id, request, entry, denial) for entry in dated]
            if request.scope is DenyScope.NAME:
                await self._deny_list.deny(dated[0], events)
                return denial
            assert known is not None, "there is something to deny of it"
            if await self._identities.settle(known, replace(known, contest=None), dated, (), events):
                return denial
        message = f"the identity {request.name} changes all the time; ask again shortly"
        raise RefusalError(Reason.STORE_UNAVAILABLE, message)

    def _event(
        self, caller: Caller, request_id: str, request: DenyRequest, entry: DenyEntry, denial: Denial
    ) -> AuditEvent:
        """As `certplane-broker identity deny` writes it: the identity is the one that is shut out."""
        what = entry.name or f"certificate {entry.serial_number} of {entry.issuer}"
        ended = "; its contest is over" if denial.ends_contest else ""
        return self._trail.of_caller(caller, request_id).event(
            AuditEventType.IDENTITY_DENIED,
            severity=AuditSeverity.WARNING,
            decision=AuditDecision.DENY,
            identity=request.name,
            reason=f"{what}, by the operator {caller.name}: {request.reason}{ended}",
        )
