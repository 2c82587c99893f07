"""What an operator does at the CA beside the running broker: look at the account, change its key, revoke.

Each function answers one command with values ready to be shown, as those of `commands`. What is done at the CA is in
the audit log before it is done, and after.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from certplane.broker import adapters
from certplane.broker.commands import Row, certificate_row, operator
from certplane.broker.configured import locating, secret_source
from certplane.broker.database import open_store
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.issuers.acme import AccountInfo, AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.config.files import read_argument
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

_CA_TIME = timedelta(minutes=1)
_BRIEFLY = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class RevocationCommand:
    """What to revoke, and why; `key_file` holds the certificate's own key in PEM, for when the account can't."""

    certificate_id: str
    reason: RevocationReason
    key_file: Path | None = None


async def account_row(settings: BrokerSettings, name: str = "") -> Row:
    """The account at the issuer `name`, the default one if empty, as the CA shows it.

    Raises:
        ConfigurationError: the account's key can't be used.
        OperationError: there is no account yet.
        RefusalError: the CA can't be asked.
    """
    ca = _ca(settings, name)
    await _need_key(settings, ca)
    async with _issuer(settings, ca, SystemClock()) as issuer:
        account = await issuer.account(_CA_TIME)
    if account is None:
        raise OperationError("the CA has no account for this key", remedy="the broker creates it with its first order")
    return _row(ca, account)


async def change_account_key(settings: BrokerSettings, name: str = "") -> Row:
    """Give the account at the issuer `name`, or the default one, a new key; running brokers pick it up.

    If it was cut off, doing it again completes it.

    Raises:
        ConfigurationError: the account's key can't be used, or the new one can't be written.
        RefusalError: what the CA said, AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    clock = SystemClock()
    ca = _ca(settings, name)
    await _need_key(settings, ca)
    async with open_store(settings, clock=clock) as stores, _issuer(settings, ca, clock) as issuer:
        old = issuer.account_key_sha256
        trail = AuditTrail(clock)
        await stores.audit.append([_key_event(trail, ca, f"the account's key {old} is to be replaced")])
        account = await issuer.roll_over_account_key(_CA_TIME)
        replaced = f"the key {account.key_sha256} has taken the place of {old} for {account.url}"
        await stores.audit.append([_key_event(trail, ca, replaced)])
    return _row(ca, account)


async def revoke_certificate(settings: BrokerSettings, revocation: RevocationCommand) -> list[Row]:
    """Revoke a certificate at the CA, then here; of a compromised key the identity's others too.

    Doing it again completes what was cut off. The rows are of what was revoked, the certificate that was named first.

    Raises:
        ConfigurationError: the key's file can't be used, or isn't that certificate's key.
        OperationError: there is no such certificate, or its issuer isn't configured any more.
        RefusalError: what the CA said, AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    clock = SystemClock()
    async with open_store(settings, clock=clock) as stores:
        named = await stores.certificates.get_certificate(revocation.certificate_id)
        if named is None:
            raise OperationError("there is no such certificate", remedy="`certs list` shows their ids")
        key = None if revocation.key_file is None else _certificate_key(revocation.key_file, named)
        rows = [await _revoke(settings, stores, named, revocation.reason, key)]
        if revocation.reason is RevocationReason.KEY_COMPROMISE:
            others = await stores.certificates.usable_of_key(named.identity, named.public_key_sha256, clock.now())
            rows += [await _revoke(settings, stores, other, revocation.reason, key) for other in others]
    return rows


async def _revoke(
    settings: BrokerSettings,
    stores: Stores,
    record: CertificateRecord,
    reason: RevocationReason,
    key: AccountKey | None,
) -> Row:
    """Revoke one certificate, with its own `key` or the account's."""
    clock = SystemClock()
    trail = AuditTrail(clock)
    async with AsyncExitStack() as stack:
        try:
            issuer = await stack.enter_async_context(_issuer(settings, _ca(settings, record.issuer), clock))
        except OperationError as error:
            message = f"{record.certificate_id} can't be revoked: {error.message}"
            raise OperationError(message, remedy=error.remedy) from error
        authorized = _revocation_event(trail, AuditEventType.CERTIFICATE_REVOCATION_AUTHORIZED, record, reason, key)
        await stores.audit.append([authorized])
        await issuer.revoke(record.certificate_pem, reason, _CA_TIME, certificate_key=key)
        events = [_revocation_event(trail, AuditEventType.CERTIFICATE_REVOKED, record, reason, key)]
        revoked = await stores.certificates.mark_revoked(record.certificate_id, reason, clock.now(), events)
    return certificate_row(revoked)


class _Ca(NamedTuple):
    name: str
    acme: AcmeCaSettings


def _ca(settings: BrokerSettings, name: str) -> _Ca:
    name = name or settings.issuer.name
    acme = settings.cas.get(name)
    if acme is None:
        raise OperationError(
            f"the configuration has no issuer {name}", remedy=f"it has {', '.join(sorted(settings.cas))}"
        )
    return _Ca(name, acme)


async def _need_key(settings: BrokerSettings, ca: _Ca) -> None:
    """Whether there is a key to ask the CA with; where there is none, what would be wrong next is told too."""
    if adapters.account_key_file(settings, ca.name).exists:
        return
    message = f"there is no account key at {ca.acme.account_key} yet"
    acme = locating(settings, lambda: adapters.ca(settings, ca.name, SystemClock()))
    try:
        await acme.read_directory(_BRIEFLY)
    except AcmeError as error:
        message += f", and the CA's directory can't be read: {error.refusal.message}"
    finally:
        await acme.close()
    raise OperationError(message, remedy="the broker makes the key when it starts")


@asynccontextmanager
async def _issuer(settings: BrokerSettings, ca: _Ca, clock: Clock) -> AsyncIterator[AcmeIssuer]:
    pool = BlockingPool("broker-files", 1)
    try:
        load = adapters.account_key_file(settings, ca.name).load
        account = await pool.run(lambda: locating(settings, load))
        secrets = secret_source(settings, pool, clock)
        rng = random.SystemRandom()
        acme = locating(settings, lambda: adapters.ca(settings, ca.name, clock))
        try:
            yield adapters.issuer(settings, ca.name, acme, account, secrets=secrets, files=pool, rng=rng)
        finally:
            await acme.close()
    finally:
        pool.close()


def _certificate_key(path: Path, record: CertificateRecord) -> AccountKey:
    """The certificate's key as one that signs ACME requests."""
    remedy = "name the PEM file with the private key of that certificate"
    key = AccountKey.from_pem(read_argument(path), path)
    if key.public_key_sha256 != record.public_key_sha256:
        raise ConfigurationError([ConfigurationProblem(str(path), None, "--key", "is another key", remedy)])
    return key


def _row(ca: _Ca, account: AccountInfo) -> Row:
    eab = ca.acme.eab
    return {
        "issuer": ca.name,
        "directory_url": ca.acme.directory_url,
        "account_url": account.url,
        "status": account.status,
        "contact": list(account.contact),
        "key_sha256": account.key_sha256,
        "external_account": eab.kid if eab is not None else "",
        "terms_of_service": account.terms_of_service,
        "profiles": [f"{name}: {text}" if text else name for name, text in account.profiles.items()],
    }


def _key_event(trail: AuditTrail, ca: _Ca, what: str) -> AuditEvent:
    return trail.event(
        AuditEventType.ACCOUNT_KEY_CHANGED,
        severity=AuditSeverity.WARNING,
        decision=AuditDecision.ALLOW,
        issuer_name=ca.name,
        issuer_directory=ca.acme.directory_url,
        reason=f"{what}, by {operator()}",
    )


def _revocation_event(
    trail: AuditTrail,
    event_type: AuditEventType,
    record: CertificateRecord,
    reason: RevocationReason,
    key: AccountKey | None,
) -> AuditEvent:
    signed = "the account's key" if key is None else "the certificate's own key"
    return trail.revoking(record, reason).event(
        event_type,
        severity=AuditSeverity.WARNING,
        decision=AuditDecision.ALLOW,
        identity=record.identity,
        reason=f"with {signed}, by {operator()}",
    )
