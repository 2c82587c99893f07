"""One blocking ACME client: each method is one exchange with the CA (RFC 8555 7), and returns checked values.

Not thread-safe; `AcmeIssuer` keeps one per worker. Nothing here waits or repeats, and everything that fails is an
`AcmeError`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import requests
from acme import challenges, errors, messages
from acme.client import ClientV2
from cryptography import x509
from josepy.errors import Error as JoseError
from josepy.json_util import field

from certplane.broker.issuers.acme_limits import ACCOUNT, limited_scopes
from certplane.broker.issuers.acme_network import AcmeError, AcmeNetwork
from certplane.broker.issuers.acme_resources import AcmeAuthorization, AcmeOrder, MalformedAnswerError
from certplane.broker.issuers.answers import parse_retry_after, printable
from certplane.broker.issuers.outgoing import ForbiddenUrlError
from certplane.errors import Reason
from certplane.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from certplane.broker.issuers.acme_account import AccountKey
    from certplane.broker.issuers.outgoing import AllowedHosts
    from certplane.runtime.clock import Clock

__all__ = ["AcmeClient", "AcmeSession"]

_NEEDED = ("newNonce", "newAccount", "newOrder", "revokeCert")
_RENEWAL_INFO = "renewalInfo"
_PEM_CHAIN = re.compile(r"\s*(-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class AcmeSession:
    """What all workers share: the directory (RFC 8555 7.1.1) and the account's URL."""

    directory: messages.Directory
    account_url: str


class _ReplacingOrder(messages.NewOrder):
    """A newOrder object that names the certificate it replaces (RFC 9773 5), which `acme` doesn't know."""

    replaces: str | None = field("replaces", omitempty=True)


class AcmeClient(ClientV2):
    """The exchanges, one a method."""

    net: AcmeNetwork

    def __init__(
        self, key: AccountKey, hosts: AllowedHosts, clock: Clock, *, user_agent: str, ca_bundle: str | None
    ) -> None:
        """Nothing is sent yet. Arguments as `AcmeNetwork`'s."""
        network = AcmeNetwork(key, hosts, clock, user_agent=user_agent, ca_bundle=ca_bundle)
        super().__init__(messages.Directory({}), network)
        self._key = key.jwk
        self._hosts = hosts
        self._clock = clock

    def close(self) -> None:
        """Close its connections."""
        self.net.session.close()

    def prepare(self, session: AcmeSession | None, deadline: float) -> None:
        """Take the shared session, and `deadline` (monotonic) for the next exchange."""
        self.net.deadline = deadline
        if session is not None:
            self.directory = session.directory
            self.net.account = messages.RegistrationResource(uri=session.account_url, body=messages.Registration())

    def fetch_directory(self, url: str) -> messages.Directory:
        """The directory, its URLs checked."""
        with _malformed_as_acme_errors():
            body = _json(self.net.get(url))
            if not isinstance(body, dict):
                raise MalformedAnswerError("a directory that isn't a JSON object")
            for name in _NEEDED:
                self._hosts.check(body.get(name))
            # Not fetched from here: that it is there says that orders may name what they replace (RFC 9773 5).
            known = (*_NEEDED, _RENEWAL_INFO) if isinstance(body.get(_RENEWAL_INFO), str) else _NEEDED
            return messages.Directory({name: body[name] for name in known})

    def register(self, directory: messages.Directory, email: str) -> AcmeSession:
        """Make the account, or find the one that this key has (RFC 8555 7.3 and 7.3.1).

        Safe to repeat: the key is the account. The contact is the one given when the account is made.
        """
        self.directory = directory
        self.net.account = None  # newAccount is signed with the key itself (6.2)
        wanted = messages.NewRegistration.from_data(email=email or None, terms_of_service_agreed=True)
        # 201 for a new account, 200 for a known one: `ClientV2.new_account` makes an error of that, and asks again.
        try:
            response = self._post(directory["newAccount"], wanted)
        except AcmeError as error:
            error.concern([ACCOUNT])
            raise
        failpoint("acme.register.sent")
        with _malformed_as_acme_errors():
            url = self._hosts.check(response.headers.get("Location"))
            status = _json(response).get("status", "valid")
        if status != "valid":
            raise AcmeError(Reason.ISSUER_REJECTED, f"the account {url} is {printable(status, 20)}")
        return AcmeSession(directory, url)

    @property
    def takes_replaces(self) -> bool:
        """Whether orders may name what they replace: some CAs refuse members that they don't know."""
        return hasattr(self.directory, _RENEWAL_INFO)

    def create_order(self, names: Sequence[str], profile: str, replaces: str = "") -> AcmeOrder:
        """POST newOrder (7.4); `replaces` is a certificate's name at the CA (RFC 9773 4.1), which must take such."""
        identifiers = [messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=name) for name in names]
        order = _ReplacingOrder(identifiers=identifiers, profile=profile or None, replaces=replaces or None)
        try:
            response = self._post(self.directory["newOrder"], order)
        except AcmeError as error:
            problems = error.refusal.problems
            if problems:
                error.concern(limited_scopes(problems[0].detail, problems, names))
            raise
        failpoint("acme.create_order.sent")
        with _malformed_as_acme_errors():
            return self._order(self._hosts.check(response.headers.get("Location")), response)

    def fetch_order(self, url: str) -> AcmeOrder:
        """POST-as-GET of an order (7.1.3)."""
        return self._order(url, self._post_as_get(url))

    def fetch_authorization(self, url: str) -> AcmeAuthorization:
        """POST-as-GET of an authorization (7.5)."""
        response = self._post_as_get(url)
        with _malformed_as_acme_errors():
            return AcmeAuthorization.parse(url, _json(response), self._key)

    def answer(self, challenge_url: str) -> None:
        """POST to a challenge: its record stands (7.5.1). The payload is `{}`."""
        # The field isn't sent; an object without one is falsy, and `acme` would send a POST-as-GET instead.
        response = self._post(challenge_url, challenges.DNS01Response(key_authorization=""))
        failpoint("acme.answer_challenges.sent")
        with _malformed_as_acme_errors():
            # Nobody needs what it says, but whoever says anything else is not the CA, which then has not been told.
            if not isinstance(body := _json(response), dict) or "status" not in body:
                raise MalformedAnswerError("a challenge that isn't one")

    def send_csr(self, order: AcmeOrder, csr_der: bytes) -> AcmeOrder:
        """POST to an order's finalize URL (7.4)."""
        request = messages.CertificateRequest(csr=x509.load_der_x509_csr(csr_der))
        failpoint("acme.finalize.before")
        response = self._post(order.finalize, request)
        failpoint("acme.finalize.sent")
        return self._order(order.url, response)

    def fetch_chain(self, url: str) -> tuple[str, tuple[str, ...]]:
        """POST-as-GET of a certificate (7.4.2): PEM, leaf first, and the URLs of alternate chains."""
        response = self._post_as_get(url)
        if not _PEM_CHAIN.fullmatch(response.text):
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it sent a chain that isn't certificates in PEM")
        failpoint("acme.download.fetched")
        return response.text, tuple(self._get_links(response, "alternate"))

    def revoke_certificate(self, certificate: x509.Certificate, reason_code: int) -> None:
        """POST revokeCert (7.6), signed by the account's key."""
        self._post(self.directory["revokeCert"], messages.Revocation(certificate=certificate, reason=reason_code))
        failpoint("acme.revoke.sent")

    def _order(self, url: str, response: requests.Response) -> AcmeOrder:
        with _malformed_as_acme_errors():
            return AcmeOrder.parse(url, _json(response), self._retry_after(response))

    def _retry_after(self, response: requests.Response) -> timedelta | None:
        return parse_retry_after(response.headers.get("Retry-After"), self._clock.now())


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
