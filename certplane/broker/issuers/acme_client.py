"""One blocking ACME client: each method is one exchange with the CA (RFC 8555 7), and returns checked values.

Not thread-safe; `AcmeIssuer` keeps one per worker. Nothing here waits or repeats, and everything that fails is an
`AcmeError`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import requests
from acme import challenges, errors, jws, messages
from acme.client import ClientV2
from cryptography import x509
from josepy.errors import Error as JoseError
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import JSONObjectWithFields
from josepy.json_util import field as json_field
from josepy.jwk import JWK

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_directory import AcmeDirectory, directory_body, parse_directory
from certplane.broker.issuers.acme_limits import ACCOUNT, limited_scopes
from certplane.broker.issuers.acme_network import AcmeError, AcmeNetwork
from certplane.broker.issuers.acme_resources import AcmeAuthorization, AcmeOrder, MalformedAnswerError
from certplane.broker.issuers.acme_settling import Settling
from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError
from certplane.errors import ProblemDocument, Reason
from certplane.pki.chain import found_chain
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint

_log = logging.getLogger(__name__)

_BASE64URL = re.compile(r"[A-Za-z0-9_-]{4,}={0,2}", re.ASCII)
_MOST_CONTACTS = 10
_LONGEST_URL = 200
ACTION_REQUIRED = "urn:ietf:params:acme:error:userActionRequired"
"""The type of problem that calls a person for the whole account (RFC 8555 6.7)."""


@dataclass(frozen=True, slots=True)
class Binding:
    """An external account (RFC 8555 7.3.4): its key id, and its MAC key as the CA gives it (base64url)."""

    kid: str
    hmac: str = field(repr=False)
    algorithm: str = "HS256"


@dataclass(frozen=True, slots=True)
class AcmeSession:
    """What all workers share: the directory (RFC 8555 7.1.1) and the account (7.1.2), `created` if it is a new one."""

    directory: AcmeDirectory
    account_url: str
    status: str = "valid"
    contact: tuple[str, ...] = ()
    created: bool = False


class _KeyChange(JSONObjectWithFields):
    """What a new key signs to take over an account (7.3.5)."""

    account: str = json_field("account")
    old_key: JWK = json_field("oldKey", encoder=JWK.to_partial_json)


class _Signed(JSONDeSerializable):
    """A JWS as the payload of another."""

    def __init__(self, inner: jws.JWS) -> None:
        self._inner = inner

    def to_partial_json(self) -> Any:
        return self._inner.to_partial_json()

    @classmethod
    def from_json(cls, jobj: Any) -> _Signed:
        """See `JSONDeSerializable.from_json`."""
        return cls(jws.JWS.from_json(jobj))


class _ReplacingOrder(messages.NewOrder):
    """A newOrder object that names the certificate it replaces (RFC 9773 5), which `acme` doesn't know."""

    replaces: str | None = json_field("replaces", omitempty=True)


class AcmeClient(ClientV2):
    """The exchanges, one a method."""

    net: AcmeNetwork

    def __init__(
        self,
        key: AccountKey,
        hosts: AllowedHosts,
        clock: Clock,
        *,
        user_agent: str,
        ca_bundle: str | None,
        section: str,
        settling: Settling | None = None,
    ) -> None:
        """Nothing is sent yet.

        Arguments as `AcmeNetwork`'s; `section` is the configuration's, for the keys that messages name; `settling` is
        all workers', what is missing at the CA.
        """
        network = AcmeNetwork(key, hosts, clock, user_agent=user_agent, ca_bundle=ca_bundle)
        super().__init__(messages.Directory({}), network)
        self.key_sha256 = key.public_key_sha256
        self._key = key.jwk
        self._hosts = hosts
        self._clock = clock
        self._user_agent, self._ca_bundle = user_agent, ca_bundle
        self._section = section
        self._settling = settling or Settling(clock)

    def close(self) -> None:
        """Close its connections."""
        self.net.session.close()

    def prepare(self, session: AcmeSession | None, deadline: float) -> None:
        """Take the shared session, and `deadline` (monotonic) for the next exchange."""
        self.net.deadline = deadline
        if session is not None:
            self.directory = session.directory.urls
            self.net.account = messages.RegistrationResource(uri=session.account_url, body=messages.Registration())

    def fetch_directory(self, url: str) -> AcmeDirectory:
        """The directory, its URLs checked. Every failure names its URL, and what to do about it."""
        try:
            response = self.net.get(url)
        except AcmeError as error:
            error.refusal = replace(error.refusal, message=f"{one_line(url, _LONGEST_URL)}: {error.refusal.message}")
            if error.unreachable:
                error.add(
                    f"check host and port of {self._section}.directory_url, the way there, and, for a private CA, "
                    f"{self._section}.ca_bundle"
                )
            raise
        try:
            return parse_directory(directory_body(response), self._hosts)
        except ForbiddenUrlError as error:
            raise _misplaced(url, f"it holds {error}", f"add that host to {self._section}.allowed_hosts") from error
        except MalformedAnswerError as error:
            remedy = f"set {self._section}.directory_url to the URL that the CA documents for its ACME directory"
            raise _misplaced(url, str(error), remedy) from error

    def register(self, directory: AcmeDirectory, email: str, binding: Binding | None = None) -> AcmeSession:
        """Make the account, or find the one that this key has (RFC 8555 7.3 and 7.3.1).

        Safe to repeat: the key is the account. The contact is the one given when the account is made.
        """
        bound = None
        if binding is not None:
            if not _BASE64URL.fullmatch(binding.hmac):  # what decodes it passes over what it doesn't know
                message = "the account's binding can't be made: its MAC key isn't base64url"
                raise AcmeError(Reason.ISSUER_REJECTED, message, unsent=True)
            bound = messages.ExternalAccountBinding.from_data(
                self._key.public_key(), binding.kid, binding.hmac.rstrip("="), directory.urls, binding.algorithm
            )
        wanted = messages.NewRegistration.from_data(
            email=email or None, terms_of_service_agreed=True, external_account_binding=bound
        )
        session = self._new_account(directory, wanted)
        failpoint("acme.register.sent")
        return session

    def find_account(self, directory: AcmeDirectory, key: AccountKey) -> AcmeSession | None:
        """The account of `key`, None if it has none (7.3.1)."""
        other = self._with_key(key)
        try:
            return other._new_account(directory, messages.NewRegistration(only_return_existing=True))  # noqa: SLF001 - another of this class
        except AcmeError as error:
            if error.is_problem("accountDoesNotExist"):
                return None
            raise
        finally:
            other.close()

    def update_contact(self, email: str) -> None:
        """POST the account's URL (7.3.2)."""
        account = self.net.account
        if account is None:
            raise RuntimeError("there is no account yet")
        self._post(account.uri, messages.UpdateRegistration(contact=(f"mailto:{email}",)))

    def change_key(self, new: AccountKey) -> None:
        """POST keyChange (7.3.5): signed by the old key, around what the new one signs."""
        account = self.net.account
        if account is None:
            raise RuntimeError("there is no account yet")
        if "keyChange" not in self.directory.to_partial_json():
            raise AcmeError(Reason.ISSUER_REJECTED, "it doesn't offer to change an account's key", unsent=True)
        url = self.directory["keyChange"]
        content = _KeyChange(account=account.uri, old_key=self._key.public_key()).json_dumps().encode()
        inner = jws.JWS.sign(content, key=new.jwk, alg=new.algorithm, nonce=None, url=url)
        failpoint("acme.change_key.before")
        self._post(url, _Signed(inner))
        failpoint("acme.change_key.sent")

    def _with_key(self, key: AccountKey) -> AcmeClient:
        """A client for one exchange that another key signs, within the same time."""
        other = AcmeClient(
            key,
            self._hosts,
            self._clock,
            user_agent=self._user_agent,
            ca_bundle=self._ca_bundle,
            section=self._section,
        )
        other.net.deadline = self.net.deadline
        return other

    def _new_account(self, directory: AcmeDirectory, wanted: messages.NewRegistration) -> AcmeSession:
        self.directory = directory.urls
        self.net.account = None  # newAccount is signed with the key itself (6.2)
        # 201 for a new account, 200 for a known one: `ClientV2.new_account` makes an error of that, and asks again.
        url = directory.urls["newAccount"]
        try:
            with self._named_by_ca(url):
                response = self._post(url, wanted)
        except AcmeError as error:
            error.concern([ACCOUNT])
            if error.is_problem("externalAccountRequired"):
                error.add(f"configure {self._section}.eab with the key id and the MAC key that the CA has given you")
            if error.is_problem("invalidContact") or error.is_problem("unsupportedContact"):
                error.add(f"correct {self._section}.account_email, or leave it out, and restart the broker")
            raise
        with _malformed_as_acme_errors():
            url = self._hosts.check(response.headers.get("Location"))
            body = _json(response)
            status = body.get("status", "valid")
            contact = body.get("contact") or ()
        if status != "valid":
            raise AcmeError(Reason.ISSUER_REJECTED, f"the account {url} is {one_line(status, 20)}")
        known = tuple(one_line(entry, 300) for entry in contact[:_MOST_CONTACTS]) if isinstance(contact, list) else ()
        return AcmeSession(directory, url, status, known, created=response.status_code == 201)

    @property
    def takes_replaces(self) -> bool:
        """Whether orders may name what they replace: some CAs refuse members that they don't know."""
        return hasattr(self.directory, "renewalInfo")

    def create_order(self, names: Sequence[str], profile: str, replaces: str = "") -> AcmeOrder:
        """POST newOrder (7.4); `replaces` is a certificate's name at the CA (RFC 9773 4.1), which must take such."""
        identifiers = [messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=name) for name in names]
        order = _ReplacingOrder(identifiers=identifiers, profile=profile or None, replaces=replaces or None)
        url = self.directory["newOrder"]
        try:
            # Where it names what it replaces, a 404 is about that.
            with contextlib.nullcontext() if replaces else self._named_by_ca(url):
                response = self._post(url, order)
        except AcmeError as error:
            problems = error.refusal.problems
            if problems:
                error.concern(limited_scopes(problems[0].detail, problems, names))
            raise
        failpoint("acme.create_order.sent")
        with _malformed_as_acme_errors():
            return self._order(self._hosts.check(response.headers.get("Location")), response)

    @contextlib.contextmanager
    def _named_by_ca(self, url: str) -> Iterator[None]:
        """For an exchange at a URL that the CA has handed out: that it doesn't know it may pass (`acme_settling`)."""
        try:
            yield
        except AcmeError as error:
            if error.missing and self._settling.missing(url):
                message = f"{error.refusal.message}; it named {one_line(url, _LONGEST_URL)} itself, and is asked again"
                error.refusal = replace(error.refusal, reason=Reason.ISSUER_UNAVAILABLE, message=message)
            elif error.missing:
                spent = self._settling.patience.total_seconds()
                error.add(f"it named {one_line(url, _LONGEST_URL)} itself, and has not known it for {spent:.0f} s")
            raise
        self._settling.found(url)

    def fetch_order(self, url: str) -> AcmeOrder:
        """POST-as-GET of an order (7.1.3)."""
        with self._named_by_ca(url):
            response = self._post_as_get(url)
        return self._order(url, response)

    def fetch_authorization(self, url: str) -> AcmeAuthorization:
        """POST-as-GET of an authorization (7.5)."""
        with self._named_by_ca(url):
            response = self._post_as_get(url)
        with _malformed_as_acme_errors():
            return AcmeAuthorization.parse(url, _json(response), self._key)

    def answer(self, challenge_url: str) -> None:
        """POST to a challenge: its record stands (7.5.1). The payload is `{}`."""
        # The field isn't sent; an object without one is falsy, and `acme` would send a POST-as-GET instead.
        with self._named_by_ca(challenge_url):
            response = self._post(challenge_url, challenges.DNS01Response(key_authorization=""))
        failpoint("acme.answer_challenges.sent")
        with _malformed_as_acme_errors():
            # Nobody needs what it says, but whoever says anything else is not the CA, which then has not been told.
            if not isinstance(body := _json(response), dict) or "status" not in body:
                raise MalformedAnswerError("a challenge that isn't one")

    def send_csr(self, order_url: str, finalize_url: str, csr_der: bytes) -> AcmeOrder:
        """POST to an order's finalize URL (7.4)."""
        request = messages.CertificateRequest(csr=x509.load_der_x509_csr(csr_der))
        failpoint("acme.finalize.before")
        with self._named_by_ca(finalize_url):
            response = self._post(finalize_url, request)
        failpoint("acme.finalize.sent")
        return self._order(order_url, response)

    def fetch_chain(self, url: str) -> tuple[str, tuple[str, ...]]:
        """POST-as-GET of a certificate (7.4.2): what came of certificates, in PEM, and the URLs of alternate chains.

        What came is the caller's to judge, even nothing: it is the CA's word, unless it is a page of HTML.
        """
        with self._named_by_ca(url):
            response = self._post_as_get(url)
        chain, passed = found_chain(response.text)
        if not chain and response.headers.get("Content-Type", "").startswith("text/html"):
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it sent a page of HTML in place of a certificate")
        if passed:
            fields = {"url": one_line(url, _LONGEST_URL), "blocks": passed}
            _log.warning("passed over what is no certificate in the CA's chain", extra={"fields": fields})
        failpoint("acme.download.fetched")
        return chain, tuple(self._get_links(response, "alternate"))

    def revoke_certificate(
        self, certificate: x509.Certificate, reason_code: int, key: AccountKey | None = None
    ) -> None:
        """POST revokeCert (7.6), signed by the account's key, or by `key`: the certificate's own."""
        request = messages.Revocation(certificate=certificate, reason=reason_code)
        if key is None:
            self._post(self.directory["revokeCert"], request)
        else:
            other = self._with_key(key)
            other.directory = self.directory
            try:
                other._post(other.directory["revokeCert"], request)  # noqa: SLF001 - another of this class
            finally:
                other.close()
        failpoint("acme.revoke.sent")

    def _order(self, url: str, response: requests.Response) -> AcmeOrder:
        with _malformed_as_acme_errors():
            return AcmeOrder.parse(url, _json(response), self._retry_after(response))

    def _retry_after(self, response: requests.Response) -> timedelta | None:
        return parse_retry_after(response.headers.get("Retry-After"), self._clock.now())


def _misplaced(url: str, what: str, remedy: str) -> AcmeError:
    """What is at the directory's URL is another thing: that doesn't pass by itself."""
    said = f"{one_line(url, _LONGEST_URL)} is no ACME directory: {what}"
    problem = ProblemDocument(ACTION_REQUIRED, said)
    error = AcmeError(Reason.ISSUER_REJECTED, f"{said}; {remedy}", problems=(problem,), unsent=True)
    error.misplaced = True
    return error


def _json(response: requests.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError("a body that isn't JSON") from error


@contextlib.contextmanager
def _malformed_as_acme_errors() -> Iterator[None]:
    try:
        yield
    except AcmeError:
        raise
    except (MalformedAnswerError, ForbiddenUrlError) as error:
        raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent {error}") from error
    except (errors.Error, JoseError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What `acme` and `josepy` raise on JSON that they didn't expect.
        message = f"it sent something unreadable ({type(error).__name__})"
        raise AcmeError(Reason.ISSUER_UNAVAILABLE, message) from error
