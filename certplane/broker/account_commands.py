"""What an operator does at the CA beside the running broker: look at the account, change its key, revoke.

What is done with an account's key in the database is `account_key_commands`.

Each function answers one command with values ready to be shown, as those of `commands`. What is done at the CA is in
the audit log before it is done, and after.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from certplane.broker import adapters
from certplane.broker.accounts.model import Account
from certplane.broker.commands import Row, certificate_row, operator
from certplane.broker.configured import located, locating, secret_source
from certplane.broker.database import open_store
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.issuance.revocation import is_left_to_revoke
from certplane.broker.issuers.acme import AccountInfo, AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.config.files import is_there, read_argument
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
    clock, ca = SystemClock(), configured_ca(settings, name)
    async with AsyncExitStack() as stack:
        stores = None
        if ca.acme.account_key.store:
            stores = await stack.enter_async_context(open_store(settings, clock=clock))
        issuer = await stack.enter_async_context(opened_issuer(settings, ca, clock, stores))
        account = await issuer.account(_CA_TIME)
    if account is None:
        raise OperationError("the CA has no account for this key", remedy="the broker creates it with its first order")
    return _row(ca, account)


async def change_account_key(settings: BrokerSettings, name: str = "") -> tuple[Row, str]:
    """Give the account at the issuer `name`, or the default one, a new key; running brokers pick it up.

    If it was cut off, doing it again completes it. The account, and what an operator has to do beside; empty if
    nothing.

    Raises:
        ConfigurationError: the account's key can't be used, or the new one can't be written.
        RefusalError: what the CA said, AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    clock = SystemClock()
    ca = configured_ca(settings, name)
    if (file := ca.acme.account_key.file) is not None and not is_there(file):
        raise await _no_key(settings, ca)  # before a database is asked for that the broker hasn't made yet either
    async with open_store(settings, clock=clock) as stores, opened_issuer(settings, ca, clock, stores) as issuer:
        await _need_one_file(ca, stores)
        old, which = issuer.account_key_sha256, (ca.name, ca.acme.directory_url)
        trail = AuditTrail(clock)
        await stores.audit.append([key_event(trail, *which, f"the account's key {old} is to be replaced")])
        with located(settings):
            account = await issuer.roll_over_account_key(_CA_TIME)
        await _record_key(ca, stores, old, account.key_sha256)
        replaced = f"the key {account.key_sha256} has taken the place of {old} for {account.url}"
        await stores.audit.append([key_event(trail, *which, replaced)])
        notice = await _records_to_publish(ca, issuer, clock)
    return _row(ca, account), notice


async def _records_to_publish(ca: Ca, issuer: AcmeIssuer, clock: Clock) -> str:
    """What a changed key means for the standing records that name it."""
    if ca.acme.challenge is not ChallengeKind.DNS_PERSIST_01:
        return ""
    try:
        directory = await issuer.ca.read_directory(_BRIEFLY)
    except AcmeError:  # the key is changed all the same
        return f"if the standing records of {ca.name} name the key, publish them anew: {print_records(ca.name)}"
    if not directory.account_hash_prefix:
        return ""  # they name the account's URL, which stays
    period, how_long = directory.key_rotation_period, "as long as it remembers them"
    if period is not None:
        how_long = f"until {clock.now() + period:%Y-%m-%dT%H:%M:%SZ}"
    return (
        f"the standing records of {ca.name} name the key of before, and the CA takes only those that it has used, "
        f"{how_long}: publish them anew; {print_records(ca.name)}"
    )


def print_records(issuer: str) -> str:
    """The command that shows what is to be published."""
    return f"`certplane-broker account persist-records --issuer {issuer}` prints them"


async def _need_one_file(ca: Ca, stores: Stores) -> None:
    """See that no broker is left with a file of the old key, which the CA doesn't take any more.

    Raises:
        OperationError: there is one on another machine.
    """
    if ca.acme.account_key.file is None:
        return
    here = socket.gethostname()
    if away := sorted({member.name for member in await stores.members.living() if member.name != here}):
        remedy = (
            "stop them, change the key, give them the new file and start them; with `account_key: {store: true}` all"
            " brokers have one key"
        )
        raise OperationError(
            f"brokers on {', '.join(away)} have the account's key in files of their own", remedy=remedy
        )


async def _record_key(ca: Ca, stores: Stores, old: str, new: str) -> None:
    """Tell brokers of the new key: they read theirs again, and refuse CSRs that have it."""
    which = ca.name, ca.acme.directory_url
    row = await stores.accounts.find(*which)
    # What stands there may be older than `old`, where a change before this one was cut off. Sealed or not, the old key
    # is nobody's any more.
    if row is None or row.sealed_key is None or row.public_key_sha256 == old:
        await stores.accounts.change(row, Account(*which, new))


async def revoke_certificate(settings: BrokerSettings, revocation: RevocationCommand) -> tuple[list[Row], bool]:
    """Revoke a certificate at the CA, then here; of a compromised key the identity's others too.

    Doing it again completes what was cut off; a certificate that is revoked stays as it is, without another event. The
    rows are of what was revoked, the certificate that was named first; whether that had been revoked before.

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
        if await is_left_to_revoke(named, revocation.reason, stores.keys, by_holder=False):
            rows = [await _revoke(settings, stores, named, revocation.reason, key)]
        else:
            rows = [certificate_row(named)]
        if revocation.reason is RevocationReason.KEY_COMPROMISE:
            others = await stores.certificates.usable_of_key(named.identity, named.public_key_sha256, clock.now())
            rows += [await _revoke(settings, stores, other, revocation.reason, key) for other in others]
    return rows, named.revoke_time is not None


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
            ca = configured_ca(settings, record.issuer)
            issuer = await stack.enter_async_context(opened_issuer(settings, ca, clock, stores))
        except OperationError as error:
            message = f"{record.certificate_id} can't be revoked: {error.message}"
            raise OperationError(message, remedy=error.remedy) from error
        authorized = _revocation_event(trail, AuditEventType.CERTIFICATE_REVOCATION_AUTHORIZED, record, reason, key)
        await stores.audit.append([authorized])
        await issuer.revoke(record.certificate_pem, reason, _CA_TIME, certificate_key=key)
        events = [_revocation_event(trail, AuditEventType.CERTIFICATE_REVOKED, record, reason, key)]
        revoked = await stores.certificates.mark_revoked(record.certificate_id, reason, clock.now(), events)
    return certificate_row(revoked)


class Ca(NamedTuple):
    """An issuer as configured."""

    name: str
    acme: AcmeCaSettings


def configured_ca(settings: BrokerSettings, name: str) -> Ca:
    """The issuer `name`, the default one if empty.

    Raises:
        OperationError: there is none.
    """
    name = name or settings.issuer.name
    acme = settings.cas.get(name)
    if acme is None:
        raise OperationError(
            f"the configuration has no issuer {name}", remedy=f"it has {', '.join(sorted(settings.cas))}"
        )
    return Ca(name, acme)


async def _no_key(settings: BrokerSettings, ca: Ca) -> OperationError:
    """There is no key yet to ask the CA with; what would be wrong next is told too."""
    message = f"there is no account key at {ca.acme.account_key.file or 'the database'} yet"
    acme = locating(settings, lambda: adapters.ca(settings, ca.name, SystemClock()))
    try:
        await acme.read_directory(_BRIEFLY)
    except AcmeError as error:
        message += f", and the CA's directory can't be read: {error.refusal.message}"
    finally:
        await acme.close()
    return OperationError(message, remedy="the broker makes the key when it starts")


@asynccontextmanager
async def opened_issuer(
    settings: BrokerSettings, ca: Ca, clock: Clock, stores: Stores | None
) -> AsyncIterator[AcmeIssuer]:
    """The issuer, with its account's key; `stores` where the database keeps it.

    Raises:
        OperationError: there is no key yet.
    """
    async with AsyncExitStack() as stack:
        pool = BlockingPool("broker-files", 1)
        stack.callback(pool.close)
        secrets = secret_source(settings, pool, clock)
        rows = stores.accounts if stores is not None else None
        keeper = adapters.account_keeper(settings, ca.name, secrets=secrets, files=pool, rows=rows)
        with located(settings):
            key = await keeper.find()
        if key is None:
            raise await _no_key(settings, ca)
        acme = locating(settings, lambda: adapters.ca(settings, ca.name, clock))
        stack.push_async_callback(acme.close)
        rng = random.SystemRandom()
        yield adapters.issuer(settings, ca.name, acme, key, keeper=keeper, secrets=secrets, rng=rng)


def _certificate_key(path: Path, record: CertificateRecord) -> AccountKey:
    """The certificate's key as one that signs ACME requests."""
    remedy = "name the PEM file with the private key of that certificate"
    key = AccountKey.from_pem(read_argument(path), str(path), "--key", remedy=remedy)
    if key.public_key_sha256 != record.public_key_sha256:
        raise ConfigurationError([ConfigurationProblem(str(path), None, "--key", "is another key", remedy)])
    return key


def _row(ca: Ca, account: AccountInfo) -> Row:
    eab = ca.acme.eab
    return {
        "issuer": ca.name,
        "directory_url": ca.acme.directory_url,
        "account_url": account.url,
        "status": account.status,
        "contact": list(account.contact),
        "key_sha256": account.key_sha256,
        "key_kept_in": ca.acme.account_key.place,
        "external_account": eab.kid if eab is not None else "",
        "terms_of_service": account.terms_of_service,
        "profiles": [f"{name}: {text}" if text else name for name, text in account.profiles.items()],
    }


def key_event(trail: AuditTrail, issuer: str, directory_url: str, what: str) -> AuditEvent:
    """What is done with an account's key."""
    return trail.event(
        AuditEventType.ACCOUNT_KEY_CHANGED,
        severity=AuditSeverity.WARNING,
        decision=AuditDecision.ALLOW,
        issuer_name=issuer,
        issuer_directory=directory_url,
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
