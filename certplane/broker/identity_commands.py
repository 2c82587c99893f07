"""What an operator at the broker's machine may do about identities: list them, shut them out, settle who is contested.

A change and its audit event are one transaction, so that nobody is shut out without a trace.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509

from certplane.broker.commands import Row, operator, shown_time
from certplane.broker.database import hold_up_decisions, open_store
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.identity.first_use import Settlement, settle
from certplane.broker.model import (
    CertificateRecord,
    DenyEntry,
    IdentityUse,
    KnownIdentity,
    Order,
    OrderState,
)
from certplane.broker.policy.document import load_policy
from certplane.broker.ports import CertificateQuery
from certplane.broker.settings import BrokerSettings
from certplane.config.files import read_file
from certplane.config.values import canonical_identity_name
from certplane.errors import ConfigurationError, OperationError
from certplane.pki.bundle import BundleError
from certplane.pki.issuer_name import find_name, parse_name
from certplane.pki.trust_bundle import TrustBundle
from certplane.runtime.clock import Clock, SystemClock

_MAX_REASON = 256
_MOST_VALID = 50
_SERIAL = re.compile(r"[0-9a-f]{1,40}")


def identity_entry(*, name: str, issuer: str, serial_number: str, reason: str = "") -> DenyEntry:
    """An entry as it is compared with callers: names canonical, serial numbers without colons and leading zeros.

    Args:
        name: An identity's name, alone.
        issuer: A certificate's issuer as RFC 4514 or OpenSSL writes it, with `serial_number`.
        serial_number: Hexadecimal, as any tool prints it.
        reason: Why.

    Raises:
        ValueError: neither a name nor an issuer with a serial number, or not such values; the text says what.
    """
    if bool(name) == bool(issuer or serial_number) or bool(issuer) != bool(serial_number):
        raise ValueError("give --name, or --issuer and --serial")
    if len(reason) > _MAX_REASON or not reason.isprintable():
        raise ValueError(f"--reason must be at most {_MAX_REASON} printable characters")
    if name:
        return DenyEntry(name=canonical_identity_name(name), reason=reason)
    serial = re.sub(r"[\s:]", "", serial_number).lower().removeprefix("0x").lstrip("0") or "0"
    if _SERIAL.fullmatch(serial) is None:
        raise ValueError("--serial must be hexadecimal")
    try:
        parsed = parse_name(issuer).rfc4514_string()
    except ValueError as error:
        raise ValueError("--issuer must be a name like `CN=Example Intermediate CA,O=Example` (RFC 4514)") from error
    return DenyEntry(issuer=parsed, serial_number=serial, reason=reason)


def is_stranger(settings: BrokerSettings, name: str) -> bool:
    """Whether the policy has no identity of this name: a slip, perhaps. A policy that doesn't load tells nothing."""
    try:
        return load_policy(settings.policy.path, settings.private_issuers).find_grant(name) is None
    except ConfigurationError:
        return False


async def known_issuer(
    settings: BrokerSettings, entry: DenyEntry, *, listed: bool = False
) -> tuple[DenyEntry, tuple[str, ...]]:
    """The entry with its issuer as identities' certificates have it, and the issuers that are known if it is none.

    Known are the CAs of the agents' bundle and those of the identities that the ledger has. An entry of another issuer
    is kept as it is: a CA that was taken out of the bundle long ago may be meant.

    Args:
        settings: Where the bundle and the ledger are.
        entry: What a person wrote.
        listed: Whether what the deny-list has is known too, and before all: to take an entry back, not to make one.
    """
    if not entry.issuer:
        return entry, ()
    async with open_store(settings) as stores:
        texts = [each.issuer for each in await stores.deny_list.entries() if each.issuer] if listed else []
        for known in await stores.identities.identities():
            texts += [use.issuer for use in (known.active, known.contest) if use is not None]
    names: dict[str, x509.Name] = {}
    for text in texts:
        with contextlib.suppress(ValueError):
            names[text] = x509.Name.from_rfc4514_string(text)
    for name in _bundle_names(settings):
        names[name.rfc4514_string()] = name
    if entry.issuer in names:
        return entry, ()
    found = find_name(x509.Name.from_rfc4514_string(entry.issuer), names.values())
    if found is None:
        return entry, tuple(sorted(names)) or ("none",)
    return replace(entry, issuer=next(text for text, name in names.items() if name is found)), ()


def _bundle_names(settings: BrokerSettings) -> list[x509.Name]:
    """The names of the bundle's CAs; of one that can't be read, none."""
    try:
        bundle = TrustBundle.from_pem(read_file(settings.server.mtls.agent_ca_bundle))
        return [certificate.subject for certificate in bundle.certificates]
    except (ConfigurationError, BundleError, ValueError):
        return []


async def deny_identity(settings: BrokerSettings, entry: DenyEntry, *, clock: Clock | None = None) -> Row:
    """Shut out what `entry` says, and end its open orders; running brokers see it within a second.

    The row names the certificates that stay valid until they are revoked: of an identity that is denied by name, the
    newest ones. And the orders that the CA has the CSR of: what they bring is stored, and handed out to nobody.

    Raises:
        RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE; nothing is changed then.
    """
    clock = clock or SystemClock()
    entry = replace(entry, create_time=clock.now())
    async with open_store(settings, clock=clock) as stores:
        event = _event(AuditTrail(clock), entry, AuditEventType.IDENTITY_DENIED, AuditDecision.DENY)
        await stores.deny_list.deny(entry, [event])
        valid: Sequence[CertificateRecord] = ()
        if entry.name:
            query = CertificateQuery(entry.name, usable_at=clock.now(), limit=_MOST_VALID)
            valid = await stores.certificates.list_certificates(query)
        open_still = [order.order_id for order in await stores.orders.unfinished_orders() if _is_of(order, entry)]
    certificates = [record.certificate_id for record in valid]
    return {**_entry_row(entry), "valid_certificates": certificates, "orders_at_the_ca": open_still}


def _is_of(order: Order, entry: DenyEntry) -> bool:
    if order.state is not OrderState.FINALIZING:
        return False
    if entry.name:
        return order.identity == entry.name
    return (order.identity_issuer, order.identity_serial) == (entry.issuer, entry.serial_number)


async def allow_identity(settings: BrokerSettings, entry: DenyEntry, *, clock: Clock | None = None) -> Row:
    """Take back what was denied by an entry of the same name, or issuer and serial; settle who a contested identity is.

    By name, a contested identity's active certificate stays. By issuer and serial number, that certificate of it is the
    active one from now on, and its others are shut out. Running brokers see it within a second.

    Raises:
        OperationError: there is no such entry and no such contested identity, or it has changed meanwhile.
        RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE; nothing is changed then.
    """
    clock = clock or SystemClock()
    async with open_store(settings, clock=clock) as stores:
        await hold_up_decisions(settings, stores, clock)
        denied = any(_same(entry, other) for other in await stores.deny_list.entries())
        found = _find_contested(entry, await stores.identities.identities(), clock.now())
        if found is None:
            event = _event(AuditTrail(clock), entry, AuditEventType.IDENTITY_ALLOWED, AuditDecision.ALLOW)
            # Another operator may have taken it back a moment ago.
            if not denied or not await stores.deny_list.allow(entry, [event]):
                remedy = "`identity list` shows all entries"
                raise OperationError("it is neither denied nor contested", remedy=remedy)
            return {**_entry_row(entry), "result": "let in again"}
        seen, settlement = found
        settled = await stores.identities.settle(
            seen,
            settlement.known,
            settlement.denied,
            [entry] if denied else [],
            _settlement_events(settlement, AuditTrail(clock)),
        )
        if not settled:
            raise OperationError("the identity has changed meanwhile", remedy="run `identity list` again")
    return _settlement_row(settlement)


async def listed_identities(settings: BrokerSettings, *, everything: bool = False) -> list[Row]:
    """What is shut out, oldest first, then the certificates of contested identities, or of all (`everything`)."""
    async with open_store(settings) as stores:
        rows = [{"state": "denied", **_entry_row(entry)} for entry in await stores.deny_list.entries()]
        for known in await stores.identities.identities():
            if known.contest is not None or everything:
                rows += _identity_rows(known)
    return rows


def _same(entry: DenyEntry, other: DenyEntry) -> bool:
    return (entry.name, entry.issuer, entry.serial_number) == (other.name, other.issuer, other.serial_number)


def _entry_row(entry: DenyEntry) -> Row:
    return {
        "name": entry.name,
        "issuer": entry.issuer,
        "serial_number": entry.serial_number,
        "since": shown_time(entry.create_time),
        "reason": entry.reason,
    }


def _find_contested(
    entry: DenyEntry, identities: Sequence[KnownIdentity], now: datetime
) -> tuple[KnownIdentity, Settlement] | None:
    """The contested identity that `entry` names, and what the operator's word makes of it."""
    keep = None if entry.name else (entry.issuer, entry.serial_number)
    for known in identities:
        settlement = settle(known, keep, now) if entry.name in ("", known.name) else None
        if settlement is not None:
            return known, settlement
    return None


def _settlement_events(settlement: Settlement, trail: AuditTrail) -> list[AuditEvent]:
    known = settlement.known
    certificate = f"certificate {known.active.serial_number} of {known.active.issuer}"
    reason = f"{known.name} is no longer contested, {certificate} is the active one, by {operator()}"
    allowed = trail.event(
        AuditEventType.IDENTITY_ALLOWED,
        severity=AuditSeverity.WARNING,
        decision=AuditDecision.ALLOW,
        identity=known.name,
        reason=reason,
    )
    denied = [
        _event(trail, entry, AuditEventType.IDENTITY_DENIED, AuditDecision.DENY, identity=known.name)
        for entry in settlement.denied
    ]
    return [allowed, *denied]


def _settlement_row(settlement: Settlement) -> Row:
    active = settlement.known.active
    others = ", ".join(entry.serial_number for entry in settlement.denied)
    return {
        "name": settlement.known.name,
        "issuer": active.issuer,
        "serial_number": active.serial_number,
        "since": shown_time(active.time),
        "reason": "",
        "result": f"is the active one; denied: {others}" if others else "is the active one; no longer contested",
    }


def _identity_rows(known: KnownIdentity) -> list[Row]:
    """The active certificate, and of a contested identity the one that contests it."""
    contest = known.contest
    if contest is None:
        return [_use_row(known, known.active, "active", "")]
    remedy = "if this holder is the right one: certplane-broker identity allow --issuer {issuer} --serial {serial}"
    return [
        {
            **_use_row(known, use, state, what),
            "remedy": remedy.format(issuer=shlex.quote(use.issuer), serial=use.serial_number),
        }
        for use, state, what in (
            (known.active, "contested, active", "first used"),
            (contest, "contested, retired", "used although the active one has taken its place"),
        )
    ]


def _use_row(known: KnownIdentity, use: IdentityUse, state: str, reason: str) -> Row:
    return {
        "state": state,
        "name": known.name,
        "issuer": use.issuer,
        "serial_number": use.serial_number,
        "since": shown_time(use.time),
        "reason": reason,
        "source_ip": use.source_ip,
        "displaced_streams": known.displaced_count,
        "displaced": shown_time(known.displace_time),
    }


def _event(
    trail: AuditTrail, entry: DenyEntry, event_type: AuditEventType, decision: AuditDecision, *, identity: str = ""
) -> AuditEvent:
    what = entry.name or f"certificate {entry.serial_number} of {entry.issuer}"
    why = f": {entry.reason}" if entry.reason else ""
    return trail.event(
        event_type,
        severity=AuditSeverity.WARNING,
        decision=decision,
        identity=identity or entry.name,
        reason=f"{what}, by {operator()}{why}",
    )
