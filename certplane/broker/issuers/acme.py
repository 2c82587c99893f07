"""`AcmeIssuer`: a public CA over ACME (RFC 8555).

Each method of the port is a step that the caller journals before the next. A step is a few exchanges with the CA.

Rules:

- a step ends by its deadline; badNonce, 5xx and lost connections are repeated until then where that is safe
  (`acme_orders`, `acme_exchanges`); a step that is cancelled closes its connections, and what it sent may still arrive;
- the CA's own word (a problem document) ends a step, but for one that passes: for a minute or two it may not know a
  URL that it has handed out itself; a page of HTML, a redirect or nonsense is an absent CA.

It refuses to fetch URLs on hosts that the configuration doesn't name, and to prove names that weren't asked for.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography import x509
from typing_extensions import override

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_chains import choose_chain
from certplane.broker.issuers.acme_client import AcmeSession
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_exchanges import REPEAT, AcmeExchanges
from certplane.broker.issuers.acme_keeping import AccountKeeper
from certplane.broker.issuers.acme_orders import AcmeOrders, log_step, shown
from certplane.broker.issuers.acme_registration import ExternalAccount, Registration
from certplane.broker.issuers.acme_settling import SETTLING
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.issuers.standing_records import StandingAccount
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Profile, RevocationReason
from certplane.broker.ports import Issuer, Revoker
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.text import counted

_log = logging.getLogger(__name__)

_REASON_CODES = {
    RevocationReason.UNSPECIFIED: 0,
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
}
"""RFC 5280 5.3.1."""

_PENDING = frozenset({IssuerOrderStatus.PENDING})


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """The account at the CA, for an operator's eyes; `key_sha256` is over the SPKI of its key."""

    url: str
    status: str
    contact: tuple[str, ...]
    key_sha256: str
    terms_of_service: str
    profiles: Mapping[str, str]


class AcmeIssuer(Issuer, Revoker):
    """The ports `Issuer` and `Revoker`, over ACME.

    Nothing is sent before the first call, so that a broker starts while its CA is away.
    """

    def __init__(
        self,
        name: str,
        ca: AcmeCa,
        key: AccountKey,
        *,
        rng: random.Random,
        repeat_waits: Backoff = REPEAT,
        keeper: AccountKeeper | None = None,
        external: ExternalAccount | None = None,
        settling: timedelta = SETTLING,
    ) -> None:
        """Make it.

        Args:
            name: the issuer's name in the configuration.
            ca: which CA; its clock is for deadlines and waits.
            key: the account's.
            rng: for the jitter of repeats.
            repeat_waits: between tries of a call that is safe to repeat.
            keeper: keeps the key, so that it can be changed.
            external: what a new account is bound to, for CAs that want it.
            settling: for how long the CA may not know what it has named itself.
        """
        self.ca = ca
        self._name = name
        self._registration = Registration(ca, key, keeper=keeper, external=external, settling=settling)
        self._exchanges = AcmeExchanges(self._registration, rng=rng, repeat_waits=repeat_waits)
        self._orders = AcmeOrders(self._exchanges, ca.server.challenge)

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def directory(self) -> str:
        return self.ca.server.directory_url

    @property
    def account_key_sha256(self) -> str:
        """SHA-256 of the account key's SPKI: a CSR with this key must be refused (RFC 8555 11.1)."""
        return self._registration.key.public_key_sha256

    def tell_of_keys(self, on_key: Callable[[str], None]) -> None:
        """`on_key` hears the SHA-256 of another key when it is in use."""
        self._registration.on_key = lambda key: on_key(key.public_key_sha256)

    async def look_at_account_key(self, timeout: timedelta) -> str:
        """Use the key that is kept: another broker or a command may have changed it. Never raises.

        Returns:
            The SHA-256 of the key in use then: that of before, where the other one can't be read.
        """
        try:
            await self._exchanges.look_at_key(Deadline.after(timeout, self.ca.clock))
        except AcmeError as error:
            _log.warning("%s; the one of before stays in use", error.refusal.message)
        return self.account_key_sha256

    @property
    def account_url(self) -> str:
        """The account's URL at the CA; empty as long as nothing was asked."""
        return self._exchanges.account_url

    @override
    async def create_order(
        self, csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = ""
    ) -> IssuerOrder:
        deadline = Deadline.after(timeout, self.ca.clock)
        names = _dns_names(csr_der)
        with _doing("create the order"):
            await self._orders.check_profile(profile.acme_profile, deadline)
            order = await self._orders.create(names, profile.acme_profile, _replaced_id(replaces), deadline)
            try:
                created = await self._orders.with_challenges(order, deadline)
            except AcmeError as error:
                # The order is made: an error now would lose it, and the next try would make another.
                message = f"the CA did not show the order {order.url}: {error.refusal.message}"
                trouble = replace(error.refusal, message=message)
                return IssuerOrder(order.url, order.status, trouble=trouble, replaces=order.replaces)
            asked = {name.removeprefix("*.") for name in names}
            if strange := [challenge.domain for challenge in created.challenges if challenge.domain not in asked]:
                raise AcmeError(
                    Reason.ISSUER_UNAVAILABLE, f"it wants to validate {strange[0]!r}, which was not requested"
                )
        log_step(
            order.url, f"order made at the CA: {order.status}, {counted(len(created.challenges), 'challenge')} to meet"
        )
        return created

    @override
    async def get_order(self, url: str, timeout: timedelta) -> IssuerOrder:
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing(f"show the order {url}"):
            return await self._orders.with_challenges(await self._orders.fetch(url, deadline), deadline)

    @override
    async def answer_challenges(self, order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        """An order that became invalid is ISSUER_REJECTED, with the CA's reasons."""
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing(f"validate the order {order.url}"):
            await all_of(self._orders.answer(challenge, deadline) for challenge in order.challenges)
            log_step(order.url, f"{counted(len(order.challenges), 'challenge')} answered")
            seen = await self._orders.look_until(_PENDING, order.url, deadline)
        log_step(order.url, f"challenges validated: {seen.status}")
        return await self._orders.unproved(seen, deadline)

    @override
    async def finalize(self, order: IssuerOrder, csr_der: bytes, timeout: timedelta) -> IssuerOrder:
        """An order that the CA has finalised already is returned as it is."""
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing(f"finalize the order {order.url}"):
            looked, ready = order, IssuerOrderStatus.READY
            if order.status is not ready or not order.finalize_url or self._orders.was_sent(order.url):
                seen = await self._orders.fetch(order.url, deadline)
                looked = shown(seen)
            if looked.status is ready:
                seen = await self._orders.send_csr(looked, csr_der, deadline)
            if seen.status is IssuerOrderStatus.INVALID:
                raise await self._orders.invalid(seen, deadline)
            if seen.status in {IssuerOrderStatus.PENDING, IssuerOrderStatus.READY}:
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it is still {seen.status}", retry_after=seen.retry_after)
        log_step(order.url, f"order finalised: {seen.status}")
        return shown(seen)

    @override
    async def download(self, order: IssuerOrder, timeout: timedelta) -> str:
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing(f"give the certificate of the order {order.url}"):
            url = order.certificate_url if order.status is IssuerOrderStatus.VALID else ""
            if not url:
                url = (await self._orders.finished(order, deadline)).certificate
            chain, alternates = await self._exchanges.call(lambda client: client.fetch_chain(url), deadline)
            log_step(order.url, "certificate fetched")
            return await choose_chain(self._exchanges, self.ca.server.preferred_chain, chain, alternates, deadline)

    @override
    async def revoke(
        self,
        certificate_pem: str,
        reason: RevocationReason,
        timeout: timedelta,
        *,
        certificate_key: AccountKey | None = None,
    ) -> None:
        """`certificate_key` signs in the account's place, for whoever holds no more (7.6)."""
        deadline = Deadline.after(timeout, self.ca.clock)
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        code = _REASON_CODES[reason]
        with _doing(f"revoke the certificate {certificate.serial_number:x}"):
            try:
                await self._exchanges.call(
                    lambda client: client.revoke_certificate(certificate, code, certificate_key), deadline
                )
            except AcmeError as error:
                if not error.is_problem("alreadyRevoked"):
                    raise
        fields = {"cert_serial_number": f"{certificate.serial_number:x}", "revocation_reason": reason.value}
        _log.info("certificate revoked at the CA", extra={"fields": fields})

    async def note_directory(self, timeout: timedelta) -> None:
        """Say in the log if the CA's directory can't be read: at the start, not with the first order. Never raises."""
        with contextlib.suppress(AcmeError):
            await self._exchanges.note_directory(Deadline.after(timeout, self.ca.clock))

    async def account(self, timeout: timedelta) -> AccountInfo | None:
        """The account as the CA shows it, None if there is none yet.

        A directory that can't be read is told at once.
        """
        deadline = Deadline.after(timeout, self.ca.clock)
        await self.ca.read_directory(timeout)
        with _doing("show the account"):
            session = await self._exchanges.find_account(deadline)
        return None if session is None else self._account_info(session)

    async def standing_account(self, timeout: timedelta) -> StandingAccount:
        """What the standing records of dns-persist-01 must name; the account is made if there is none yet.

        Raises:
            RefusalError: the CA can't be asked, or refuses to make the account.
        """
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing("show the account"):
            session = await self._exchanges.session(deadline)
        directory = session.directory
        return StandingAccount(
            directory.issuer_domain_names or directory.caa_identities,
            session.account_url,
            self._registration.key.thumbprint,
            directory.account_hash_prefix,
        )

    async def roll_over_account_key(self, timeout: timedelta) -> AccountInfo:
        """Give the account a new key (7.3.5); running brokers pick it up.

        Raises:
            RefusalError: ISSUER_REJECTED, nothing is changed; ISSUER_UNAVAILABLE, asking again tells.
        """
        deadline = Deadline.after(timeout, self.ca.clock)
        with _doing("change the account's key"):
            session = await self._exchanges.roll_over(deadline)
        _log.warning("the account has a new key", extra={"fields": {"acme_account_url": session.account_url}})
        return self._account_info(session)

    def _account_info(self, session: AcmeSession) -> AccountInfo:
        directory = session.directory
        return AccountInfo(
            url=session.account_url,
            status=session.status,
            contact=session.contact,
            key_sha256=self.account_key_sha256,
            terms_of_service=directory.terms_of_service,
            profiles=directory.profiles,
        )


def _dns_names(csr_der: bytes) -> tuple[str, ...]:
    """The DNS names of the CSR's SAN; the caller has checked the CSR."""
    csr = x509.load_der_x509_csr(csr_der)
    sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(sorted({name.lower() for name in sans.get_values_for_type(x509.DNSName)}))


def _replaced_id(certificate_pem: str) -> str:
    """The name of a certificate at its CA (RFC 9773 4.1); empty if it has none, or there is no certificate."""
    try:
        return certificate_id(x509.load_pem_x509_certificate(certificate_pem.encode())) if certificate_pem else ""
    except ValueError:
        return ""


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    """Say in the message of an error what was being done."""
    try:
        yield
    except AcmeError as error:
        did = "refused to" if error.refusal.reason is Reason.ISSUER_REJECTED else "did not"
        message = f"the CA {did} {what}: {error.refusal.message}"
        raise RefusalError.of(replace(error.refusal, message=message)) from error
