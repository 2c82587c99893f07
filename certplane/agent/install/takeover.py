"""Whether a pair that stands at configured paths is kept until it is due, and none ordered in its place. Pure.

What other programs left (certbot, acme.sh, lego, a person) goes on serving if a renewal would bring no better: a key
and its certificate, of the names and the kind of key that are configured, in force, with a chain that leads upwards.
Anything else is no reason to fail: it stays as it is, the cause is told once with its remedy, and a certificate is
ordered. So is where a placeholder stands, as services have one to start with: signed by itself, a CA's for tests, or
good for years.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from certplane.agent.install.material import NoPairError, Part, rebuilt
from certplane.errors import OperationError, RefusalError
from certplane.pki.chain import check_issued_chain, leaf_facts
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import check_public_key
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.text import counted

_STAGING = "(STAGING)"
"""How the names of Let's Encrypt's test CAs begin; no client trusts them."""
_LONGEST = timedelta(days=398)
"""Of a public CA's certificate: CA/Browser Forum, Baseline Requirements 6.3.2, before 2026. What is good for longer
would be kept for years, and nobody who moves to a broker wants that."""
_OR_NOT = "else there is nothing to do: one is ordered"


class NotTakenOverError(OperationError):
    """What stands at the configured paths is not kept; it is left as it is."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration wants of a pair.

    `dns_names` are canonical and sorted; `key_type` is a `pki.keys.KeyType` by value; `chain`: an output has the
    issuers' certificates.
    """

    dns_names: tuple[str, ...]
    key_type: str
    chain: bool


def check_standing(found: Mapping[Part, bytes], wanted: Wanted, now: datetime) -> None:
    """Whether what was read at the configured paths may be kept.

    Raises:
        NotTakenOverError: it may not; cause and remedy.
    """
    try:
        files = rebuilt(found)
    except NoPairError as error:
        raise NotTakenOverError(
            str(error), remedy=f"put the certificate, its chain and its own key there unencrypted; {_OR_NOT}"
        ) from error
    fullchain = files[Part.FULLCHAIN].decode("ascii")
    try:
        leaf = x509.load_pem_x509_certificate(fullchain.encode())
        facts = leaf_facts(files[Part.CERT].decode("ascii"))
        if leaf.issuer == leaf.subject:
            raise NotTakenOverError("the certificate is signed by itself", remedy=_OR_NOT)
        if any(name.startswith(_STAGING) for name in _names(leaf.issuer)):
            raise NotTakenOverError("the certificate is of a CA for tests", remedy=_OR_NOT)
        _check_key(leaf, wanted)
        if facts.not_after - facts.not_before > _LONGEST:
            life = counted((facts.not_after - facts.not_before).days, "day")
            raise NotTakenOverError(f"the certificate's lifetime is {life}, longer than a public CA's", remedy=_OR_NOT)
        if facts.not_after <= now:
            raise NotTakenOverError(f"the certificate expired at {_text(facts.not_after)}", remedy=_OR_NOT)
        if facts.dns_names != wanted.dns_names:
            raise NotTakenOverError(
                f"the certificate is for {', '.join(facts.dns_names) or 'no DNS name'} instead of "
                f"{', '.join(wanted.dns_names)}",
                remedy=f"correct dns_names, if it is what the profile has; {_OR_NOT}",
            )
        check_issued_chain(fullchain, public_key_sha256=facts.public_key_sha256, dns_names=wanted.dns_names, now=now)
    except ChainError as error:
        raise NotTakenOverError(error.refusal.message, remedy=_OR_NOT) from error
    except READ_ERRORS as error:
        raise NotTakenOverError("the certificate can't be read", remedy=_OR_NOT) from error
    if wanted.chain and not files[Part.CHAIN]:
        raise NotTakenOverError(
            "the certificate's issuer isn't beside it, and an output needs it",
            remedy=f"add the issuer's certificate to the file, or to `chain`; {_OR_NOT}",
        )


def _check_key(leaf: x509.Certificate, wanted: Wanted) -> None:
    try:
        kind = check_public_key(leaf.public_key()).value
    except RefusalError as error:
        raise NotTakenOverError(f"its key can't be kept: {error.refusal.message}", remedy=_OR_NOT) from error
    if kind != wanted.key_type:
        raise NotTakenOverError(
            f"its key is {kind}, and key_type is {wanted.key_type}",
            remedy=f"write `key_type: {kind}` to keep it until it is due, where policy.yml allows that; {_OR_NOT}",
        )


def _names(name: x509.Name) -> list[str]:
    wanted = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    return [str(attribute.value) for oid in wanted for attribute in name.get_attributes_for_oid(oid)]


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
