"""A CA's JSON as checked values: orders, authorizations, problem documents (RFC 8555 7.1 and 6.7). Pure.

Read here rather than with `acme.messages`: those refuse a whole order for one unknown status, identifier or challenge
type inside, and drop the status of a problem. What isn't understood and isn't needed is passed over; what is needed and
missing is a `MalformedAnswerError`.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.standing_records import LABEL, issuer_domain_names
from certplane.broker.model import DnsChallenge, IssuerOrderStatus
from certplane.errors import ProblemDocument
from certplane.pki.names import DnsNameError, canonical_dns_name

_LONGEST_TYPE = 200
_LONGEST_DETAIL = 500
MOST_PROBLEMS = 10
"""With the lengths above they fit into a gRPC status (8 KiB of metadata)."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{22,512}", re.ASCII)
"""Of at least 128 bits (RFC 8555 8.4)."""
_MOST_AUTHORIZATIONS = 100
"""Names in a certificate of a public CA."""


class MalformedAnswerError(ValueError):
    """An answer lacks what the protocol promises; the text is ours."""


def parse_json(body: bytes) -> Any:
    """What the JSON in `body` says.

    Raises:
        MalformedAnswerError: it isn't JSON, or nested too deeply.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError("a body that isn't JSON") from error


@dataclass(frozen=True, slots=True)
class AcmeOrder:
    """An order object (RFC 8555 7.1.3). `problems` says why it is invalid, if the CA says so on the order.

    `replaces` is of a new one: whether it was made as the renewal of a certificate.
    """

    url: str
    status: IssuerOrderStatus
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str
    problems: tuple[ProblemDocument, ...]
    retry_after: timedelta | None
    replaces: bool = False

    @classmethod
    def parse(cls, url: str, body: object, retry_after: timedelta | None) -> AcmeOrder:
        """Read it.

        Raises:
            MalformedAnswerError: no such thing.
        """
        fields = _mapping(body, "an order")
        try:
            status = IssuerOrderStatus(_text(fields, "status"))
        except ValueError as error:
            raise MalformedAnswerError("an order with an unknown status") from error
        # CAs that have approved an account's names beforehand may leave out what nobody is to do (RFC 8555 wants it).
        authorizations = fields.get("authorizations")
        if authorizations is None:
            authorizations = []
        if not isinstance(authorizations, list) or len(authorizations) > _MOST_AUTHORIZATIONS:
            raise MalformedAnswerError("an order without a sensible list of authorizations")
        certificate = fields.get("certificate")
        return cls(
            url=url,
            status=status,
            authorizations=tuple(entry for entry in authorizations if isinstance(entry, str)),
            finalize=_text(fields, "finalize"),
            certificate=certificate if isinstance(certificate, str) else "",
            problems=problem_documents(fields.get("error")),
            retry_after=retry_after,
        )


@dataclass(frozen=True, slots=True)
class AcmeAuthorization:
    """An authorization object (RFC 8555 7.1.4): `status` as the CA writes it; `challenge` is that of our kind, if any.

    `answered` says whether the CA has taken an answer to that: while it validates, the authorization is still pending.
    `issuer_names` are the CA's names that a dns-persist-01 challenge offers.
    """

    url: str
    domain: str
    status: str
    challenge: DnsChallenge | None
    problems: tuple[ProblemDocument, ...]
    answered: bool = False
    issuer_names: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, url: str, body: object, thumbprint: str, kind: ChallengeKind = ChallengeKind.DNS_01
    ) -> AcmeAuthorization:
        """Read it; `thumbprint` is that of the account's key, for the TXT value of dns-01.

        Raises:
            MalformedAnswerError: no such thing.
        """
        fields = _mapping(body, "an authorization")
        try:
            # It becomes the name of a record: nothing but a DNS name gets any further.
            value = _text(_mapping(fields.get("identifier"), "an identifier"), "value")
            domain = canonical_dns_name(value.removeprefix("*."))
        except DnsNameError as error:
            raise MalformedAnswerError("an authorization for something that isn't a DNS name") from error
        found = fields.get("challenges")
        offered = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
        dns = [entry for entry in offered if entry.get("type") == kind]
        problems = [problem for entry in offered for problem in problem_documents(entry.get("error"), domain=domain)]
        return cls(
            url=url,
            domain=domain,
            status=_text(fields, "status"),
            challenge=_challenge(url, domain, dns[0], thumbprint, kind) if dns else None,
            problems=tuple(problems[:MOST_PROBLEMS]),
            answered=bool(dns) and dns[0].get("status", "pending") != "pending",
            # As draft 02 and draft 01 of dns-persist-01 spell it.
            issuer_names=issuer_domain_names(dns[0].get("issuerDomainNames", dns[0].get("issuer-domain-names")))
            if dns
            else (),
        )


def problem_documents(body: object, status: int | None = None, domain: str = "") -> tuple[ProblemDocument, ...]:
    """The problem document and its subproblems, each text on one line; empty if `body` isn't one.

    Args:
        body: decoded JSON of any shape.
        status: HTTP status, when the document has none.
        domain: the identifier, when the document has none.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("type"), str):
        return ()
    subproblems = body.get("subproblems")
    entries = [body, *(subproblems if isinstance(subproblems, list) else [])]
    return tuple(
        _problem_document(entry, status, domain) for entry in entries[:MOST_PROBLEMS] if isinstance(entry, Mapping)
    )


def _problem_document(body: Mapping[str, object], status: int | None, domain: str) -> ProblemDocument:
    own_status, identifier = body.get("status"), body.get("identifier")
    name = identifier.get("value") if isinstance(identifier, Mapping) else None
    return ProblemDocument(
        type=one_line(body.get("type"), _LONGEST_TYPE) or "about:blank",
        detail=one_line(body.get("detail") or body.get("title"), _LONGEST_DETAIL),
        status=own_status if isinstance(own_status, int) and 100 <= own_status < 600 else status,
        identifier=one_line(name, _LONGEST_TYPE) or domain,
    )


def _challenge(
    url: str, domain: str, fields: Mapping[str, object], thumbprint: str, kind: ChallengeKind
) -> DnsChallenge:
    """RFC 8555 8.1 and 8.4; of dns-persist-01 nothing is computed, since its record stands."""
    if kind is ChallengeKind.DNS_PERSIST_01:
        return DnsChallenge(domain, LABEL + domain, "", url, _text(fields, "url"), standing=True)
    token = _text(fields, "token").rstrip("=")
    if not _TOKEN.fullmatch(token):
        raise MalformedAnswerError("a challenge with a bad token")
    authorization = f"{token}.{thumbprint}"
    digest = urlsafe_b64encode(hashlib.sha256(authorization.encode("ascii")).digest())
    return DnsChallenge(
        domain=domain,
        record_name=f"_acme-challenge.{domain}",
        record_value=digest.decode("ascii").rstrip("="),
        authorization_url=url,
        challenge_url=_text(fields, "url"),
        key_authorization=authorization,
    )


def _mapping(body: object, what: str) -> Mapping[str, object]:
    if not isinstance(body, Mapping):
        raise MalformedAnswerError(f"{what} that isn't a JSON object")
    return body


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedAnswerError(f"an object without {name}")
    return value
