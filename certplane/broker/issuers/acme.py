"""`AcmeIssuer`: a public CA over ACME (RFC 8555), with the `acme` package.

Each method of the port is a step that the caller journals before the next. A step is a few exchanges with the CA, each
on a worker of a bounded pool (`acme_workers`); between them the event loop waits, not a thread.

Rules:

- a step ends by its deadline; badNonce, 5xx and lost connections are repeated until then where that is safe;
- newOrder is safe to repeat: the worst is an order that nobody finishes, which the CA lets expire;
- finalize is not: a CSR whose answer is lost is never sent again here; it goes to an order that was ready when it was
  last looked at, and after a CSR was sent to it, an order is looked at again before another;
- answering a challenge is safe, because one that is no longer pending takes no second answer;
- the CA's own word (a problem document) ends a step, but for one that passes: for a minute or two it may not know a
  URL that it has handed out itself; a page of HTML, a redirect or nonsense is an absent CA.

It refuses to fetch URLs on hosts that the configuration doesn't name, and to prove names that weren't asked for.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from typing_extensions import override

from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_client import AcmeClient, AcmeSession
from certplane.broker.issuers.acme_directory import AcmeDirectory, no_such_profile
from certplane.broker.issuers.acme_network import AcmeError
from certplane.broker.issuers.acme_registration import ExternalAccount, Registration
from certplane.broker.issuers.acme_resources import MOST_PROBLEMS, AcmeAuthorization, AcmeOrder
from certplane.broker.issuers.acme_settling import SETTLING, Settling
from certplane.broker.issuers.acme_workers import REPEAT, AcmeWorkers, unsent
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError
from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus, Profile, RevocationReason
from certplane.broker.ports import Issuer, Revoker
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, Refusal, RefusalError
from certplane.pki.chain import top_issuer
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

_log = logging.getLogger(__name__)

_FIRST_LOOK = timedelta(milliseconds=250)
_LONGEST_LOOK = timedelta(seconds=5)
_LOOK_GROWTH = 1.6
"""Waits between looks at an order when the CA sends no Retry-After. The first finds a CA that is done at once; the
last keeps a CA that needs minutes at twelve requests each."""

_ALTERNATE_TIME = timedelta(seconds=10)
"""For a chain that is nicer than the one that is there already."""
_MOST_ALTERNATES = 10
"""Chains that are looked at beside the default one."""

_REASON_CODES = {
    RevocationReason.UNSPECIFIED: 0,
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
}
"""RFC 5280 5.3.1."""

_REPLACES_PROBLEMS = ("alreadyReplaced", "malformed", "unauthorized")
"""What CAs say of an order's `replaces` (RFC 9773 5): it has an order already, they don't know the member or the
certificate, or it is of another account."""

_REPLACES_STUMBLES = 2
"""Faults of the CA's own (serverInternal) after which an order is asked for without `replaces`: one may pass, but a CA
that stumbles over it does so each time. Pebble 2.10 does where the serial number begins with a zero octet."""

_SENT_KEPT = 10_000
"""Orders whose CSR was sent that are remembered: far more than are under way."""

_PENDING = frozenset({IssuerOrderStatus.PENDING})
_UNFINISHED = frozenset({IssuerOrderStatus.PENDING, IssuerOrderStatus.READY, IssuerOrderStatus.PROCESSING})


@dataclass(frozen=True, slots=True)
class AcmeServer:
    """Which CA, and how it is reached.

    Attributes:
        directory_url: `issuer.acme.directory_url`, https.
        account_email: contact given when the account is made; may be empty.
        preferred_chain: common name of the issuer of the wanted chain's last certificate; empty for the CA's default.
        allowed_hosts: more hosts that its answers may point to, `host` or `host:port`.
        ca_bundle: PEM file with the roots of a private CA's HTTPS server; None for the public ones.
        user_agent: with the program's version.
        section: the configuration's section of this CA, whose keys messages name.
    """

    directory_url: str
    account_email: str = ""
    preferred_chain: str = ""
    allowed_hosts: tuple[str, ...] = ()
    ca_bundle: Path | None = None
    user_agent: str = "certplane"
    section: str = "issuer.acme"


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """The account at the CA, for an operator's eyes; `key_sha256` is over the SPKI of its key."""

    url: str
    status: str
    contact: tuple[str, ...]
    key_sha256: str
    terms_of_service: str
    profiles: Mapping[str, str]


class DirectoryError(RefusalError):
    """A CA's directory can't be read; the message has its URL and what to do.

    Attributes:
        wrong: the configuration is to be suspected, not the hour: something else is there, or nobody at all.
    """

    def __init__(self, refusal: Refusal, *, wrong: bool) -> None:
        super().__init__(refusal.reason, refusal.message, retry_after=refusal.retry_after, problems=refusal.problems)
        self.wrong = wrong


class AcmeIssuer(Issuer, Revoker):
    """The ports `Issuer` and `Revoker`, over ACME.

    Nothing is sent before the first call, so that a broker starts while its CA is away.
    """

    def __init__(
        self,
        name: str,
        server: AcmeServer,
        key: AccountKey,
        *,
        clock: Clock,
        rng: random.Random,
        workers: int = 4,
        repeat_waits: Backoff = REPEAT,
        key_file: AccountKeyFile | None = None,
        external: ExternalAccount | None = None,
        settling: timedelta = SETTLING,
    ) -> None:
        """Make it.

        Args:
            name: the issuer's name in the configuration.
            server: which CA.
            key: the account's.
            clock: for deadlines and waits.
            rng: for the jitter of repeats.
            workers: exchanges with the CA under way at once.
            repeat_waits: between tries of a call that is safe to repeat.
            key_file: where the key is, so that it can be changed.
            external: what a new account is bound to, for CAs that want it.
            settling: for how long the CA may not know what it has named itself.

        Raises:
            ConfigurationError: the directory's URL or an allowed host can't be used.
        """
        try:
            hosts = AllowedHosts(server.directory_url, server.allowed_hosts)
        except ForbiddenUrlError as error:
            problem = ConfigurationProblem("", None, f"{server.section}.directory_url", str(error), "name an https URL")
            raise ConfigurationError([problem]) from error
        bundle = None if server.ca_bundle is None else str(server.ca_bundle)
        self._name, self._server, self._clock = name, server, clock
        self._sent: dict[str, None] = {}
        """URLs of orders that a CSR was sent to, oldest first."""
        self._moved = False
        """The CA didn't know the URL of its directory at which orders are made: it may have another one by now."""
        self._registration = Registration(
            server.directory_url,
            server.account_email,
            key,
            key_file=key_file,
            external=external,
            clock=clock,
            section=server.section,
        )
        missing = Settling(clock, settling)
        self._workers = AcmeWorkers(
            lambda key: AcmeClient(
                key,
                hosts,
                clock,
                user_agent=server.user_agent,
                ca_bundle=bundle,
                settling=missing,
                section=server.section,
            ),
            self._registration,
            size=workers,
            rng=rng,
            repeat_waits=repeat_waits,
        )

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def directory(self) -> str:
        return self._server.directory_url

    @property
    def account_key_sha256(self) -> str:
        """SHA-256 of the account key's SPKI: a CSR with this key must be refused (RFC 8555 11.1)."""
        return self._registration.key.public_key_sha256

    @property
    def account_url(self) -> str:
        """The account's URL at the CA; empty as long as nothing was asked."""
        return self._workers.account_url

    def close(self) -> None:
        """Take no more calls and close the connections."""
        self._workers.close()

    @override
    async def create_order(
        self, csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = ""
    ) -> IssuerOrder:
        deadline = Deadline.after(timeout, self._clock)
        names = _dns_names(csr_der)
        with _doing("create the order"):
            await self._check_profile(profile.acme_profile, deadline)
            order = await self._new_order(names, profile.acme_profile, _replaced_id(replaces), deadline)
            try:
                created = await self._with_challenges(order, deadline)
            except AcmeError as error:
                # The order is made: an error now would lose it, and the next try would make another.
                message = f"the CA did not show the order {order.url}: {error.refusal.message}"
                return IssuerOrder(order.url, order.status, trouble=replace(error.refusal, message=message))
            asked = {name.removeprefix("*.") for name in names}
            if strange := [challenge.domain for challenge in created.challenges if challenge.domain not in asked]:
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it wants proof for {strange[0]!r}, which wasn't asked for")
        _log_step(order.url, f"order made at the CA: {order.status}, {len(created.challenges)} challenges to meet")
        return created

    @override
    async def get_order(self, url: str, timeout: timedelta) -> IssuerOrder:
        deadline = Deadline.after(timeout, self._clock)
        with _doing(f"show the order {url}"):
            return await self._with_challenges(await self._fetch(url, deadline), deadline)

    @override
    async def answer_challenges(self, order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        """An order that became invalid is ISSUER_REJECTED, with the CA's reasons."""
        deadline = Deadline.after(timeout, self._clock)
        with _doing(f"validate the order {order.url}"):
            await all_of(self._answer(challenge, deadline) for challenge in order.challenges)
            _log_step(order.url, f"{len(order.challenges)} challenges answered")
            seen = await self._look_until(_PENDING, order.url, deadline)
        _log_step(order.url, f"challenges validated: {seen.status}")
        return _shown(seen)

    @override
    async def finalize(self, order: IssuerOrder, csr_der: bytes, timeout: timedelta) -> IssuerOrder:
        """An order that the CA has finalised already is returned as it is."""
        deadline = Deadline.after(timeout, self._clock)
        with _doing(f"finalize the order {order.url}"):
            looked, ready = order, IssuerOrderStatus.READY
            if order.status is not ready or not order.finalize_url or order.url in self._sent:
                seen = await self._fetch(order.url, deadline)
                looked = _shown(seen)
            if looked.status is ready:
                seen = await self._send_csr(looked, csr_der, deadline)
            if seen.status is IssuerOrderStatus.INVALID:
                raise await self._invalid(seen, deadline)
            if seen.status in {IssuerOrderStatus.PENDING, IssuerOrderStatus.READY}:
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it is still {seen.status}", retry_after=seen.retry_after)
        _log_step(order.url, f"order finalised: {seen.status}")
        return _shown(seen)

    @override
    async def download(self, order: IssuerOrder, timeout: timedelta) -> str:
        deadline = Deadline.after(timeout, self._clock)
        with _doing(f"give the certificate of the order {order.url}"):
            url = order.certificate_url if order.status is IssuerOrderStatus.VALID else ""
            if not url:
                if order.status is IssuerOrderStatus.PROCESSING and order.retry_after:
                    await deadline.sleep(order.retry_after)
                # "ready" may be an answer from a replica that lags behind the finalisation.
                url = (await self._look_while(_UNFINISHED, order.url, deadline)).certificate
            chain, alternates = await self._workers.call(lambda client: client.fetch_chain(url), deadline)
            _log_step(order.url, "certificate fetched")
            return await self._choose_chain(chain, alternates, deadline)

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
        deadline = Deadline.after(timeout, self._clock)
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        code = _REASON_CODES[reason]
        with _doing(f"revoke the certificate {certificate.serial_number:x}"):
            try:
                await self._workers.call(
                    lambda client: client.revoke_certificate(certificate, code, certificate_key), deadline
                )
            except AcmeError as error:
                if not error.is_problem("alreadyRevoked"):
                    raise
        fields = {"cert_serial_number": f"{certificate.serial_number:x}", "revocation_reason": reason.value}
        _log.info("certificate revoked at the CA", extra={"fields": fields})

    async def _new_order(self, names: Sequence[str], profile: str, replaces: str, deadline: Deadline) -> AcmeOrder:
        stumbles = 0
        if self._moved:  # its directory was read when the broker started
            await self._workers.session(deadline, fresh_directory=True)
            self._moved = False

        def ask(client: AcmeClient) -> AcmeOrder:
            nonlocal stumbles
            told = replaces if client.takes_replaces and stumbles < _REPLACES_STUMBLES else ""
            try:
                return client.create_order(names, profile, told)
            except AcmeError as error:
                stumbles += bool(told) and error.is_problem("serverInternal")
                self._moved = self._moved or (error.missing and not told)
                raise

        try:
            return await self._workers.call(ask, deadline)
        except AcmeError as error:
            if not replaces or not any(error.is_problem(name) for name in _REPLACES_PROBLEMS):
                raise
            # A limit may apply then that a known renewal is spared; better than no certificate.
            fields = {"replaces": replaces, "dns_names": " ".join(names)}
            _log.warning("the CA takes no order that replaces this: %s", error, extra={"fields": fields})
            return await self._workers.call(lambda client: client.create_order(names, profile), deadline)

    async def read_directory(self, timeout: timedelta) -> AcmeDirectory:
        """The CA's directory, asked for once, without the account.

        Raises:
            DirectoryError: it can't be read.
        """
        try:
            return await self._workers.read_directory(Deadline.after(timeout, self._clock))
        except AcmeError as error:
            raise DirectoryError(error.refusal, wrong=error.misplaced or error.unreachable) from error

    async def note_directory(self, timeout: timedelta) -> None:
        """Say in the log if the CA's directory can't be read: at the start, not with the first order. Never raises."""
        with contextlib.suppress(AcmeError):
            await self._workers.note_directory(Deadline.after(timeout, self._clock))

    async def account(self, timeout: timedelta) -> AccountInfo | None:
        """The account as the CA shows it, None if there is none yet.

        A directory that can't be read is told at once.
        """
        deadline = Deadline.after(timeout, self._clock)
        await self.read_directory(timeout)
        with _doing("show the account"):
            session = await self._workers.find_account(deadline)
        return None if session is None else self._account_info(session)

    async def roll_over_account_key(self, timeout: timedelta) -> AccountInfo:
        """Give the account a new key (7.3.5); running brokers pick it up.

        Raises:
            RefusalError: ISSUER_REJECTED, nothing is changed; ISSUER_UNAVAILABLE, asking again tells.
        """
        deadline = Deadline.after(timeout, self._clock)
        with _doing("change the account's key"):
            session = await self._workers.roll_over(deadline)
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

    async def _check_profile(self, name: str, deadline: Deadline) -> None:
        """Ask for no certificate profile that the CA doesn't have; it may have got one since the start."""
        if not name or name in (await self._workers.session(deadline)).directory.profiles:
            return
        fresh = await self._workers.session(deadline, fresh_directory=True)
        missing = no_such_profile(name, fresh.directory)
        if missing is not None:
            raise AcmeError(missing.reason, missing.message, problems=missing.problems, unsent=True)

    async def _fetch(self, url: str, deadline: Deadline) -> AcmeOrder:
        return await self._workers.call(lambda client: client.fetch_order(url), deadline)

    async def _authorizations(self, order: AcmeOrder, deadline: Deadline) -> list[AcmeAuthorization]:
        async def fetch(url: str) -> AcmeAuthorization:
            return await self._workers.call(lambda client: client.fetch_authorization(url), deadline)

        return await all_of(fetch(url) for url in order.authorizations)

    async def _with_challenges(self, order: AcmeOrder, deadline: Deadline) -> IssuerOrder:
        """The order with its outstanding challenges: authorizations that are valid already are skipped (7.5)."""
        if order.status is not IssuerOrderStatus.PENDING:
            return _shown(order)
        outstanding = [entry for entry in await self._authorizations(order, deadline) if entry.status == "pending"]
        challenges = [entry.challenge for entry in outstanding if entry.challenge is not None]
        if len(challenges) < len(outstanding):
            without = next(entry.domain for entry in outstanding if entry.challenge is None)
            raise AcmeError(Reason.ISSUER_REJECTED, f"it offers no dns-01 challenge for {without}")
        return replace(_shown(order), challenges=tuple(challenges))

    async def _answer(self, challenge: DnsChallenge, deadline: Deadline) -> None:
        try:
            await self._workers.call(lambda client: client.answer(challenge.challenge_url), deadline)
        except AcmeError as error:
            if error.refusal.reason is not Reason.ISSUER_REJECTED:
                raise
            # It was answered before, by a try whose answer was lost or before a restart: then it isn't pending now.
            seen = await self._workers.call(
                lambda client: client.fetch_authorization(challenge.authorization_url), deadline
            )
            if seen.status == "pending":
                raise

    async def _send_csr(self, order: IssuerOrder, csr_der: bytes, deadline: Deadline) -> AcmeOrder:
        self._sent[order.url] = None
        while len(self._sent) > _SENT_KEPT:
            del self._sent[next(iter(self._sent))]
        try:
            sent = await self._workers.call(
                lambda client: client.send_csr(order.url, order.finalize_url, csr_der), deadline, may_repeat=unsent
            )
        except AcmeError as error:
            if not error.is_problem("orderNotReady"):
                raise
            # It was finalised meanwhile, or a replica doesn't know yet that it is ready: its status tells.
            return await self._fetch(order.url, deadline)
        _log_step(order.url, "CSR sent")
        return sent

    async def _look_while(self, unfinished: frozenset[IssuerOrderStatus], url: str, deadline: Deadline) -> AcmeOrder:
        """Look at the order until its status is another."""
        seen = await self._look_until(unfinished, url, deadline)
        if seen.status in unfinished:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it is still {seen.status}", retry_after=seen.retry_after)
        return seen

    async def _look_until(self, unfinished: frozenset[IssuerOrderStatus], url: str, deadline: Deadline) -> AcmeOrder:
        """Look at the order until its status is another or time is up, waiting as the CA asks (Retry-After)."""
        pause = _FIRST_LOOK
        while (seen := await self._fetch(url, deadline)).status in unfinished:
            if not await deadline.sleep(max(pause, seen.retry_after or timedelta())):
                return seen
            pause = min(pause * _LOOK_GROWTH, _LONGEST_LOOK)
        if seen.status is IssuerOrderStatus.INVALID:
            raise await self._invalid(seen, deadline)
        return seen

    async def _invalid(self, order: AcmeOrder, deadline: Deadline) -> AcmeError:
        """Why the order is invalid: its own problem, and those of its failed authorizations (7.1.6)."""
        problems = list(order.problems)
        with contextlib.suppress(AcmeError):
            for authorization in await self._authorizations(order, deadline):
                problems += authorization.problems
        said = "; ".join(f"{problem.identifier} {problem.detail}".strip() for problem in problems[:3])
        return AcmeError(Reason.ISSUER_REJECTED, said or "the order is invalid", problems=problems[:MOST_PROBLEMS])

    async def _choose_chain(self, chain: str, alternates: Sequence[str], deadline: Deadline) -> str:
        """The default chain; the preferred one where there is one, or any other where the default one is of no use."""
        wanted = self._server.preferred_chain
        usable = ""
        for url in ("", *alternates[:_MOST_ALTERNATES]):
            try:
                other = await self._alternate(url, deadline.earlier(_ALTERNATE_TIME)) if url else chain
                top = top_issuer(other, self._clock.now())
            except RefusalError as error:
                # The certificate is issued: another chain serves better than none.
                which = "an alternate chain" if url else "the CA's default chain"
                _log.warning("%s can't be used: %s", which, error, extra={"fields": {"url": url}})
                continue
            if not wanted or top == wanted:
                return other
            usable = usable or other
        if wanted and usable:
            _log.warning("the CA offers no chain from %r; the first that can be used is", wanted)
        return usable or chain

    async def _alternate(self, url: str, deadline: Deadline) -> str:
        chain, _ = await self._workers.call(lambda client: client.fetch_chain(url), deadline)
        return chain


def _shown(order: AcmeOrder) -> IssuerOrder:
    return IssuerOrder(
        order.url,
        order.status,
        finalize_url=order.finalize,
        certificate_url=order.certificate,
        retry_after=order.retry_after,
    )


def _log_step(order_url: str, what: str) -> None:
    _log.info(what, extra={"fields": {"acme_order_url": order_url}})


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
