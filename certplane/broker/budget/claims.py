"""Which buckets an order needs a place in. Pure.

An order needs one in the bucket of its account, of each registered domain of its names, and of its set of names. Of
each name's bucket of failed validations it takes none; there has to be one more than the failure that it may bring,
since the CA locks a name that has none left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from certplane.broker.budget.model import BucketKey, Claim, Exemption, IssuerLimits, Limit, LimitScope, Need, Urgency
from certplane.broker.model import Scope, ScopeKind
from certplane.pki.names import names_sha256
from certplane.pki.public_suffixes import registered_domain

_LONGEST_LABEL: Final = 200
BY_ACCOUNT: Final = frozenset({LimitScope.ACCOUNT, LimitScope.FAILED_VALIDATIONS})
"""What a CA counts for each account apart."""
_KINDS: Final = {
    LimitScope.ACCOUNT: ScopeKind.ACCOUNT,
    LimitScope.REGISTERED_DOMAIN: ScopeKind.DOMAIN,
    LimitScope.NAMES: ScopeKind.NAME_SET,
    LimitScope.FAILED_VALIDATIONS: ScopeKind.NAME,
}
"""What a CA's refusal is about, as `issuers.acme_limits` reads it, and which limit that is."""
_FAILURES: Final = re.compile(r"failed (?:authori[sz]ation|validation)|authori[sz]ation-failures", re.IGNORECASE)
"""How Let's Encrypt refuses a name for its failures (Boulder, `ratelimits/limiter.go`). After many more in a row it
"temporarily prevents" orders of the name, which lasts until somebody visits the page that it names."""


def urgency_of(order_id: str, expire_time: datetime | None, create_time: datetime) -> Urgency:
    """Who goes first: renewals by the end of the certificate in use, then first issues by age.

    `expire_time` is when the certificate that the order takes the place of ends, or was revoked; None without one.
    """
    return Urgency(1, create_time, order_id) if expire_time is None else Urgency(0, expire_time, order_id)


def claim_of(
    limits: IssuerLimits,
    dns_names: tuple[str, ...],
    *,
    urgency: Urgency,
    ari: bool = False,
) -> Claim:
    """What an order needs of its issuer's ledger.

    Args:
        limits: Of its issuer.
        dns_names: Its names, canonical and sorted.
        urgency: Who goes first.
        ari: Whether the order says what it replaces, and the CA's window for that is open.
    """
    digest = names_sha256(dns_names)
    needs = [
        Need(
            BucketKey(limits.directory_url, limits.issuer if limit.scope in BY_ACCOUNT else "", limit.name, subject),
            label,
            limit,
            takes=limit.scope is not LimitScope.FAILED_VALIDATIONS,
            unless_known=Exemption.SAME_NAMES in limit.exempt,
        )
        for limit in limits.limits
        if not (ari and Exemption.ARI in limit.exempt)
        for subject, label in _subjects(limit, dns_names, digest)
    ]
    return Claim(limits.issuer, digest, tuple(needs), urgency)


def failed_needs(limits: IssuerLimits, names: Iterable[str]) -> Sequence[Need]:
    """The buckets in which a failed validation of each of these names counts."""
    found = sorted({name.removeprefix("*.") for name in names})
    return [
        Need(BucketKey(limits.directory_url, limits.issuer, limit.name, name), name, limit)
        for limit in limits.limits
        if limit.scope is LimitScope.FAILED_VALIDATIONS
        for name in found
    ]


def refused_needs(claim: Claim, scopes: Iterable[Scope], said: str) -> Sequence[Need]:
    """Those of an order's needs that a CA's refusal is about; none: it is about no limit that is known.

    Args:
        claim: What the order needs, whatever it is exempt from.
        scopes: What the refusal is about.
        said: The CA's words.
    """
    told = list(scopes)
    return [need for need in claim.needs if any(_is_about(scope, need, said) for scope in told)]


def _is_about(scope: Scope, need: Need, said: str) -> bool:
    if scope.kind is not _KINDS[need.limit.scope]:
        return False
    if need.limit.scope is LimitScope.FAILED_VALIDATIONS and _FAILURES.search(said) is None:
        return False  # a name that only a person can unlock, say, and waiting doesn't
    # A CA may name a domain above or below what the list of public suffixes says.
    subject = f".{need.key.subject}"
    return not scope.value or subject.endswith(f".{scope.value}") or f".{scope.value}".endswith(subject)


def _subjects(limit: Limit, dns_names: tuple[str, ...], digest: str) -> Iterator[tuple[str, str]]:
    """The subjects of a limit in an order, each with its label."""
    match limit.scope:
        case LimitScope.ACCOUNT:
            yield "", ""
        case LimitScope.NAMES:
            label = ", ".join(dns_names)
            yield digest, label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
        case LimitScope.REGISTERED_DOMAIN:
            for domain in sorted({registered_domain(name) for name in dns_names}):
                yield domain, domain
        case LimitScope.FAILED_VALIDATIONS:
            for name in sorted({name.removeprefix("*.") for name in dns_names}):
                yield name, name
