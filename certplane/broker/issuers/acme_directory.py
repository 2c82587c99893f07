"""An ACME directory (RFC 8555 7.1.1) as checked values: where things are, and what the CA says of itself. Pure.

One value for everybody who needs it: the ACME client, renewal information (RFC 9773) and the look at CAA records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from certplane.broker.issuers.acme_errors import AcmeAnswer
from certplane.broker.issuers.acme_resources import MalformedAnswerError
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.outgoing import AllowedHosts
from certplane.broker.issuers.standing_records import hash_prefix, issuer_domain_names
from certplane.errors import ProblemDocument, Reason, Refusal

_NEEDED = ("newNonce", "newAccount", "newOrder", "revokeCert")
_MOST_PROFILES = 50
_MOST_CAA_IDENTITIES = 20
_LONGEST_NAME = 64
_LONGEST_TEXT = 200
_LONGEST_SPAN = 100 * 366 * 86400
"""Seconds; more is no time that anybody plans with."""
_DOMAIN = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,9}\.?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AcmeDirectory:
    """What a CA offers. The URLs of the protocol are checked: they may be called.

    Attributes:
        key_change: empty if the CA doesn't change keys (7.3.5).
        renewal_info: as the CA gives it, not checked, so that a bad one stops no order; None if it offers none.
        caa_identities: the CA's names in CAA records, lower case.
        profiles: certificate profiles and the CA's own descriptions (draft-ietf-acme-profiles); empty if it has none.
        terms_of_service: URL of the current terms, for people.
        external_account_required: whether new accounts must be bound (7.3.4).
        issuer_domain_names: the CA's names in the records of dns-persist-01 (draft-ietf-acme-dns-persist-02 3.2); empty
            if it says none that may be relied on.
        account_hash_prefix: how those records name accounts, from draft 02 on; empty for draft 01.
        key_rotation_period: for how long they may name a key that the account had; None if the CA doesn't say.
    """

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str
    key_change: str = ""
    renewal_info: str | None = None
    caa_identities: tuple[str, ...] = ()
    profiles: Mapping[str, str] = field(default_factory=dict)
    terms_of_service: str = ""
    external_account_required: bool = False
    issuer_domain_names: tuple[str, ...] = ()
    account_hash_prefix: str = ""
    key_rotation_period: timedelta | None = None


def parse_directory(answer: AcmeAnswer, hosts: AllowedHosts) -> AcmeDirectory:
    """What answers a GET of a directory.

    Raises:
        MalformedAnswerError: it is no directory, as from a wrong URL; the text says what came instead.
        ForbiddenUrlError: it points to hosts that may not be called.
    """
    body = _body(answer)
    renewal_info, meta = body.get("renewalInfo"), body.get("meta")
    said: Mapping[str, object] = meta if isinstance(meta, dict) else {}
    offered, named = said.get("profiles"), said.get("caaIdentities")
    profiles = list(offered.items())[:_MOST_PROFILES] if isinstance(offered, dict) else []
    names = [name for name in named[:_MOST_CAA_IDENTITIES] if isinstance(name, str)] if isinstance(named, list) else []
    return AcmeDirectory(
        new_nonce=hosts.check(body.get("newNonce")),
        new_account=hosts.check(body.get("newAccount")),
        new_order=hosts.check(body.get("newOrder")),
        revoke_cert=hosts.check(body.get("revokeCert")),
        key_change=hosts.check(body["keyChange"]) if "keyChange" in body else "",
        renewal_info=renewal_info if renewal_info is None or isinstance(renewal_info, str) else "",
        caa_identities=tuple(name.lower().rstrip(".") for name in names if _DOMAIN.fullmatch(name)),
        profiles={
            name: one_line(text, _LONGEST_TEXT) for name, text in profiles if name == one_line(name, _LONGEST_NAME)
        },
        terms_of_service=one_line(said.get("termsOfService"), _LONGEST_TEXT),
        external_account_required=said.get("externalAccountRequired") is True,
        issuer_domain_names=issuer_domain_names(said.get("issuerDomainNames")),
        account_hash_prefix=hash_prefix(said.get("accountHashPrefix")),
        key_rotation_period=_span(said.get("keyRotationPeriod")),
    )


def no_such_profile(name: str, directory: AcmeDirectory) -> Refusal | None:
    """Why an order can't ask for the certificate profile `name`, in the CA's own words; None if it can.

    Asking would end the same at a CA that knows profiles. One that doesn't would issue what it always does, of another
    lifetime than the one that policy counts on.
    """
    if name in directory.profiles:
        return None
    shown = one_line(name, _LONGEST_NAME)
    offers = "; ".join(f"{known}: {text}" if text else known for known, text in sorted(directory.profiles.items()))
    said = f"it has no certificate profile {shown!r}; " + (f"it offers {offers}" if offers else "it offers none at all")
    problem = ProblemDocument("urn:ietf:params:acme:error:invalidProfile", said)
    return Refusal(Reason.ISSUER_REJECTED, said, problems=(problem,))


def _span(seconds: object) -> timedelta | None:
    """A number of seconds as JSON has it; what is no sensible one is none."""
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 <= seconds <= _LONGEST_SPAN:
        return None
    return timedelta(seconds=seconds)


def _body(answer: AcmeAnswer) -> Mapping[str, object]:
    status, headers = answer.status, answer.headers
    if 300 <= status < 400:
        where = one_line(headers.get("location", ""), _LONGEST_TEXT) or "an unnamed place"
        raise MalformedAnswerError(f"HTTP status {status}, a redirect to {where} that isn't followed")
    if status != 200:
        raise MalformedAnswerError(f"HTTP status {status}")
    try:
        body = answer.json()
    except MalformedAnswerError as error:
        kind = one_line(headers.get("content-type", ""), 60).partition(";")[0]
        raise MalformedAnswerError(f"something that isn't JSON ({kind or 'of no content type'})") from error
    if not isinstance(body, dict):
        raise MalformedAnswerError("JSON that isn't an object")
    if missing := [name for name in _NEEDED if not isinstance(body.get(name), str)]:
        raise MalformedAnswerError(f"an object without {missing[0]}")
    return body
