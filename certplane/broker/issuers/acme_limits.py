"""What a CA's refusal is about: the account, a registered domain, a name, or one set of names. Pure.

RFC 8555 6.6 has one problem type for every limit and leaves the rest to people's eyes, so that what follows goes by, in
this order:

1. what was asked: a directory, a nonce and an account name no names, so that their limits are the client's;
2. the anchor of the CA's documentation that its text links to, and its words (Let's Encrypt's, whose Boulder others run
   too: `ratelimits/limiter.go`, `errors/errors.go`);
3. the identifiers that subproblems name, and names of the order that the text quotes;
4. else the narrowest that is safe: the very set of names that was asked for. If the limit is wider, each other set
   meets it once and then waits too; guessing too wide would keep certificates from names that may have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from certplane.broker.model import Scope, ScopeKind
from certplane.errors import ProblemDocument
from certplane.pki.names import DnsNameError, canonical_dns_name

ACCOUNT = Scope(ScopeKind.ACCOUNT)
NAME_SET = Scope(ScopeKind.NAME_SET)

_MOST_SCOPES = 10
_ACCOUNT = re.compile(
    r"#new-orders-per-account|#new-registrations|#pending-authorizations"
    r"|new orders \(\d+\) from this account|too many new orders|new registrations|from this ip|pending authorizations",
    re.IGNORECASE,
)
_NAME_SET = re.compile(r"exact[- ]set|#duplicate-certificate|/duplicate-certificate-limit", re.IGNORECASE)
_DOMAIN = re.compile(
    r"certificates-per-(?:registered-)?domain|certificates \(\d+\) already issued for"
    r"|too many certificates already issued for",
    re.IGNORECASE,
)
_DNS_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)+", re.ASCII)
_URL = re.compile(r"https?://\S+")


def limited_scopes(detail: str, problems: Sequence[ProblemDocument], dns_names: Sequence[str]) -> tuple[Scope, ...]:
    """What a limit that was met with a new order is about; never empty.

    Args:
        detail: the CA's words.
        problems: its problem document and the subproblems.
        dns_names: what was asked for, canonical.
    """
    if _NAME_SET.search(detail):
        return (NAME_SET,)
    if _ACCOUNT.search(detail):
        return (ACCOUNT,)
    named = [problem.identifier for problem in problems[1:] if problem.identifier]
    quoted = _DNS_NAME.findall(_URL.sub(" ", detail))
    is_domain = _DOMAIN.search(detail) is not None
    scopes: dict[Scope, None] = {}
    for name in _canonical([*named, *quoted]):
        scope = _scope_of(name, dns_names, is_domain=is_domain)
        if scope is not None:
            scopes[scope] = None
    return tuple(scopes)[:_MOST_SCOPES] or (NAME_SET,)


def _scope_of(name: str, dns_names: Sequence[str], *, is_domain: bool) -> Scope | None:
    """What the CA means by a name; None for one that has nothing to do with the order: a year, or another's name."""
    own = {asked.removeprefix("*.") for asked in dns_names}
    above = any(asked.endswith(f".{name}") for asked in own)
    if is_domain and (name in own or above):
        return Scope(ScopeKind.DOMAIN, name)
    if name in own:
        return Scope(ScopeKind.NAME, name)
    return Scope(ScopeKind.DOMAIN, name) if above and "." in name else None


def _canonical(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield canonical_dns_name(name.removeprefix("*."))
        except DnsNameError:
            continue
