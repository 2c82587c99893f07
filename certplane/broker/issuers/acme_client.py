"""An ACME client: each method is one exchange with the CA (RFC 8555 7), and returns checked values.

Nothing here waits or repeats but for a bad nonce, and everything that fails is an `AcmeError`. Messages and signatures
are those of the packages `acme` and `josepy`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from acme import jws, messages
from cryptography import x509
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import JSONObjectWithFields
from josepy.json_util import field as json_field
from josepy.jwk import JWK

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_errors import LONGEST_URL, AcmeAnswer, AcmeError, malformed_as_acme_errors
from certplane.broker.issuers.acme_limits import ACCOUNT, limited_scopes
from certplane.broker.issuers.acme_resources import AcmeAuthorization, AcmeOrder, MalformedAnswerError
from certplane.broker.issuers.acme_settling import Settling
from certplane.broker.issuers.acme_signing import SignedRequests, base64url
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.standing_records import why_malformed
from certplane.errors import Reason
from certplane.pki.chain import MOST_CAME, found_chain
from certplane.runtime.failpoints import failpoint

_log = logging.getLogger(__name__)

_BASE64URL = re.compile(r"([A-Za-z0-9_-]{4})+([A-Za-z0-9_-]{2,3})?={0,2}", re.ASCII)
"""No octets end in a single character."""
_MOST_CONTACTS = 10
_END = "-----END CERTIFICATE-----"
_AS_GET: Final = b""
"""The payload of a POST-as-GET (6.3)."""


@dataclass(frozen=True, slots=True)
class Binding:
    """An external account (RFC 8555 7.3.4): its key id, and its MAC key as the CA gives it (base64url)."""

    kid: str
    hmac: str = field(repr=False)
    algorithm: str = "HS256"


@dataclass(frozen=True, slots=True)
class AcmeSession:
    """What all exchanges share: the directory (RFC 8555 7.1.1) and the account (7.1.2), `created` if it is new."""

    directory: AcmeDirectory
    account_url: str
    status: str = "valid"
    contact: tuple[str, ...] = ()
    created: bool = False


class _KeyChange(JSONObjectWithFields):
    """What a new key signs to take over an account (7.3.5)."""

    account: str = json_field("account")
    old_key: JWK = json_field("oldKey", encoder=JWK.to_partial_json)


@dataclass(frozen=True, slots=True)
class AcmeClient:
    """The exchanges of one account, one a method.

    Attributes:
        ca: which CA.
        requests: what signs and sends; all clients of an account share it.
        settling: what is missing at the CA; shared too.
        directory: where things are.
        key: signs.
        account_url: names the key; empty where there is no account yet: the key itself is sent (6.2).
    """

    ca: AcmeCa
    requests: SignedRequests
    settling: Settling
    directory: AcmeDirectory
    key: AccountKey
    account_url: str = ""

    async def register(self, email: str, binding: Binding | None = None) -> AcmeSession:
        """Make the account, or find the one that this key has (RFC 8555 7.3 and 7.3.1).

        Safe to repeat: the key is the account. The contact is the one given when the account is made.
        """
        bound = None
        if binding is not None:
            if not _BASE64URL.fullmatch(binding.hmac):  # what decodes it passes over what it doesn't know
                message = "the account's binding can't be made: its MAC key isn't base64url"
                raise AcmeError(Reason.ISSUER_REJECTED, message, unsent=True)
            bound = messages.ExternalAccountBinding.from_data(
                self.key.jwk.public_key(),
                binding.kid,
                binding.hmac.rstrip("="),
                messages.Directory({"newAccount": self.directory.new_account}),
                binding.algorithm,
            )
        wanted = messages.NewRegistration.from_data(
            email=email or None, terms_of_service_agreed=True, external_account_binding=bound
        )
        session = await self._new_account(wanted)
        failpoint("acme.register.sent")
        return session

    async def find_account(self) -> AcmeSession | None:
        """The account that this key has, None if it has none (7.3.1)."""
        try:
            return await self._new_account(messages.NewRegistration(only_return_existing=True))
        except AcmeError as error:
            if error.is_problem("accountDoesNotExist"):
                return None
            raise

    async def update_contact(self, email: str) -> None:
        """POST the account's URL (7.3.2)."""
        await self._post(self.account_url, _json(messages.UpdateRegistration(contact=(f"mailto:{email}",))))

    async def change_key(self, new: AccountKey) -> None:
        """POST keyChange (7.3.5): signed by the old key, around what the new one signs."""
        url = self.directory.key_change
        if not url:
            raise AcmeError(Reason.ISSUER_REJECTED, "it doesn't offer to change an account's key", unsent=True)
        content = _json(_KeyChange(account=self.account_url, old_key=self.key.jwk.public_key()))
        inner = jws.JWS.sign(content, key=new.jwk, alg=new.algorithm, nonce=None, url=url)
        failpoint("acme.change_key.before")
        await self._post(url, _json(inner))
        failpoint("acme.change_key.sent")

    async def _new_account(self, wanted: messages.NewRegistration) -> AcmeSession:
        url, section = self.directory.new_account, self.ca.server.section
        try:
            with self._named_by_ca(url):
                answer = await self._post(url, _json(wanted))
        except AcmeError as error:
            error.concern([ACCOUNT])
            if error.is_problem("externalAccountRequired"):
                error.add(f"configure {section}.eab with the key id and the MAC key that the CA has given you")
            if error.is_problem("invalidContact", "unsupportedContact"):
                error.add(f"correct {section}.account_email, or leave it out, and restart the broker")
            raise
        with malformed_as_acme_errors():
            url = self._location(answer)
            body = answer.json()
            status = body.get("status", "valid")
            contact = body.get("contact") or ()
        if status != "valid":
            raise AcmeError(Reason.ISSUER_REJECTED, f"the account {url} is {one_line(status, 20)}")
        known = tuple(one_line(entry, 300) for entry in contact[:_MOST_CONTACTS]) if isinstance(contact, list) else ()
        # 201 for a new account, 200 for a known one.
        return AcmeSession(self.directory, url, status, known, created=answer.status == 201)

    async def create_order(self, names: Sequence[str], profile: str, replaces: str = "") -> AcmeOrder:
        """POST newOrder (7.4); `replaces` is a certificate's name at the CA (RFC 9773 4.1), which must take such."""
        order: dict[str, object] = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        order |= {name: value for name, value in (("profile", profile), ("replaces", replaces)) if value}
        url = self.directory.new_order
        try:
            # Where it names what it replaces, a 404 is about that.
            with nullcontext() if replaces else self._named_by_ca(url):
                answer = await self._post(url, msgspec.json.encode(order))
        except AcmeError as error:
            problems = error.refusal.problems
            if problems:
                error.concern(limited_scopes(problems[0].detail, problems, names))
            raise
        failpoint("acme.create_order.sent")
        with malformed_as_acme_errors():
            return _order(self._location(answer), answer)

    async def fetch_order(self, url: str) -> AcmeOrder:
        """POST-as-GET of an order (7.1.3)."""
        with self._named_by_ca(url):
            answer = await self._post(url, _AS_GET)
        return _order(url, answer)

    async def fetch_authorization(self, url: str) -> AcmeAuthorization:
        """POST-as-GET of an authorization (7.5)."""
        with self._named_by_ca(url):
            answer = await self._post(url, _AS_GET)
        with malformed_as_acme_errors():
            found = AcmeAuthorization.parse(url, answer.json(), self.key.thumbprint, self.ca.server.challenge)
            if found.challenge is not None and found.challenge.standing:
                of_ca = self.directory.issuer_domain_names, self.directory.caa_identities
                if wrong := why_malformed(found.issuer_names, *of_ca):
                    raise MalformedAnswerError(wrong)
            return found

    async def answer(self, challenge_url: str) -> None:
        """POST to a challenge: its record stands (7.5.1). The payload is `{}`."""
        with self._named_by_ca(challenge_url):
            answer = await self._post(challenge_url, b"{}")
        failpoint("acme.answer_challenges.sent")
        with malformed_as_acme_errors():
            # Nobody needs what it says, but whoever says anything else is not the CA, which then has not been told.
            if not isinstance(body := answer.json(), dict) or "status" not in body:
                raise MalformedAnswerError("a malformed challenge")

    async def send_csr(self, order_url: str, finalize_url: str, csr_der: bytes) -> AcmeOrder:
        """POST to an order's finalize URL (7.4)."""
        failpoint("acme.finalize.before")
        with self._named_by_ca(finalize_url):
            answer = await self._post(finalize_url, msgspec.json.encode({"csr": base64url(csr_der)}))
        failpoint("acme.finalize.sent")
        return _order(order_url, answer)

    async def fetch_chain(self, url: str) -> tuple[str, tuple[str, ...]]:
        """POST-as-GET of a certificate (7.4.2): what came of certificates, in PEM, and the URLs of alternate chains.

        What came is the caller's to judge, even nothing: it is the CA's word, unless it is a page of HTML.
        """
        with self._named_by_ca(url):
            answer = await self._post(url, _AS_GET)
        chain, passed = found_chain(_not_endless(answer.text))
        if not chain and answer.headers.get("content-type", "").startswith("text/html"):
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it sent a page of HTML in place of a certificate")
        if passed:
            fields = {"url": one_line(url, LONGEST_URL), "blocks": passed}
            _log.warning("ignored content in the CA's chain that is not a certificate", extra={"fields": fields})
        failpoint("acme.download.fetched")
        return chain, answer.links("alternate")

    async def revoke_certificate(
        self, certificate: x509.Certificate, reason_code: int, key: AccountKey | None = None
    ) -> None:
        """POST revokeCert (7.6), signed by the account's key, or by `key`: the certificate's own."""
        request = messages.Revocation(certificate=certificate, reason=reason_code)
        await self._post(self.directory.revoke_cert, _json(request), key)
        failpoint("acme.revoke.sent")

    async def _post(self, url: str, payload: bytes, key: AccountKey | None = None) -> AcmeAnswer:
        """POST, signed in the account's name, or by `key` in its own."""
        return await self.requests.post(
            url,
            payload,
            key or self.key,
            account_url="" if key else self.account_url,
            new_nonce_url=self.directory.new_nonce,
        )

    def _location(self, answer: AcmeAnswer) -> str:
        """The URL of what was made. Raises `ForbiddenUrlError` if it has none that may be called."""
        return self.ca.http.hosts.check(answer.headers.get("location"))

    @contextmanager
    def _named_by_ca(self, url: str) -> Iterator[None]:
        """For an exchange at a URL that the CA has handed out: that it doesn't know it may pass (`acme_settling`)."""
        try:
            yield
        except AcmeError as error:
            if error.missing and self.settling.missing(url):
                message = (
                    f"{error.refusal.message}; it named {one_line(url, LONGEST_URL)}itself; it will be asked again"
                )
                error.refusal = replace(error.refusal, reason=Reason.ISSUER_UNAVAILABLE, message=message)
            elif error.missing:
                spent = self.settling.patience.total_seconds()
                error.add(f"it named {one_line(url, LONGEST_URL)} itself, and has not known it for {spent:.0f} s")
            raise
        self.settling.found(url)


def _json(message: JSONDeSerializable) -> bytes:
    return message.json_dumps().encode()


def _order(url: str, answer: AcmeAnswer) -> AcmeOrder:
    with malformed_as_acme_errors():
        return AcmeOrder.parse(url, answer.json(), answer.retry_after)


def _not_endless(text: str) -> str:
    """`text` up to the first certificate too many: a megabyte of them would hold the event loop for 70 ms."""
    parts = text.split(_END, MOST_CAME + 1)
    return text if len(parts) <= MOST_CAME + 1 else _END.join([*parts[:-1], ""])
