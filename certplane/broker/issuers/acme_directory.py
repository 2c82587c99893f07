"""An ACME directory (RFC 8555 7.1.1) as checked values: where things are, and what the CA says of itself. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import requests
from acme import messages

from certplane.broker.issuers.acme_resources import MalformedAnswerError
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.outgoing import AllowedHosts
from certplane.errors import ProblemDocument, Reason, Refusal

_NEEDED = ("newNonce", "newAccount", "newOrder", "revokeCert")
_KEY_CHANGE, _RENEWAL_INFO = "keyChange", "renewalInfo"
_MOST_PROFILES = 50
_LONGEST_NAME = 64
_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True)
class AcmeDirectory:
    """What a CA offers.

    Attributes:
        urls: as `acme` takes them; those of the protocol alone, each one that is called from here checked.
        profiles: certificate profiles and the CA's own descriptions (draft-ietf-acme-profiles); empty if it has none.
        terms_of_service: URL of the current terms, for people.
        external_account_required: whether new accounts must be bound (7.3.4).
    """

    urls: messages.Directory
    profiles: Mapping[str, str] = field(default_factory=dict)
    terms_of_service: str = ""
    external_account_required: bool = False


def directory_body(response: requests.Response) -> object:
    """The JSON that answers a GET of a directory; pure.

    Raises:
        MalformedAnswerError: the answer is none, as from a wrong URL; the text says what came instead.
    """
    status = response.status_code
    kind = one_line(response.headers.get("Content-Type", ""), 60).partition(";")[0]
    if 300 <= status < 400:
        where = one_line(response.headers.get("Location", ""), _LONGEST_TEXT) or "an unnamed place"
        raise MalformedAnswerError(f"HTTP status {status}, a redirect to {where} that isn't followed")
    if status != 200:
        raise MalformedAnswerError(f"HTTP status {status}")
    try:
        body: object = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"something that isn't JSON ({kind or 'of no content type'})") from error
    if not isinstance(body, dict):
        raise MalformedAnswerError("JSON that isn't an object")
    if missing := [name for name in _NEEDED if not isinstance(body.get(name), str)]:
        raise MalformedAnswerError(f"an object without {missing[0]}")
    return body


def parse_directory(body: object, hosts: AllowedHosts) -> AcmeDirectory:
    """Read it.

    Raises:
        MalformedAnswerError: no such thing.
        ForbiddenUrlError: it points to hosts that may not be called.
    """
    if not isinstance(body, dict):
        raise MalformedAnswerError("a directory that isn't a JSON object")
    names = [*_NEEDED, _KEY_CHANGE] if _KEY_CHANGE in body else _NEEDED
    checked = {name: hosts.check(body.get(name)) for name in names}
    if isinstance(body.get(_RENEWAL_INFO), str):
        # Not fetched from here: that it is there says that orders may name what they replace (RFC 9773 5).
        checked[_RENEWAL_INFO] = body[_RENEWAL_INFO]
    urls = messages.Directory(checked)
    meta = body.get("meta")
    if not isinstance(meta, dict):
        return AcmeDirectory(urls)
    offered = meta.get("profiles")
    profiles = list(offered.items())[:_MOST_PROFILES] if isinstance(offered, dict) else []
    return AcmeDirectory(
        urls,
        profiles={
            name: one_line(text, _LONGEST_TEXT) for name, text in profiles if name == one_line(name, _LONGEST_NAME)
        },
        terms_of_service=one_line(meta.get("termsOfService"), _LONGEST_TEXT),
        external_account_required=meta.get("externalAccountRequired") is True,
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
