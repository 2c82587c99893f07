"""Which scope a CA's words block, by the texts that Let's Encrypt's servers send and by what others may."""

from __future__ import annotations

import pytest

from certplane.broker.issuers.acme_limits import limited_scopes
from certplane.errors import ProblemDocument

NAMES = ("*.shop.example.org", "shop.example.org", "www.example.org")
DOCS = "retry after 2026-11-24 09:13:16 UTC: see https://letsencrypt.org/docs/rate-limits/#"


@pytest.mark.parametrize(
    ("detail", "scopes"),
    [
        pytest.param(
            f"too many new orders (300) from this account in the last 3h0m0s, {DOCS}new-orders-per-account",
            ["account"],
            id="orders of the account",
        ),
        pytest.param(
            f'too many certificates (50) already issued for "example.org" in the last 168h0m0s, {DOCS}'
            "new-certificates-per-registered-domain",
            ["domain:example.org"],
            id="certificates of a registered domain",
        ),
        pytest.param(
            f"too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, {DOCS}"
            "new-certificates-per-exact-set-of-identifiers",
            ["name_set"],
            id="the exact set",
        ),
        pytest.param(
            "too many certificates (5) already issued for this exact set of domains in the last 168 hours: "
            "shop.example.org,www.example.org: see https://letsencrypt.org/docs/duplicate-certificate-limit/",
            ["name_set"],
            id="the exact set, in older words",
        ),
        pytest.param(
            f'too many failed authorizations (5) for "shop.example.org" in the last 1h0m0s, {DOCS}'
            "authorization-failures-per-identifier-per-account",
            ["name:shop.example.org"],
            id="failed validations of a name",
        ),
        pytest.param(
            f"too many new registrations (10) from this IP address in the last 3h0m0s, {DOCS}"
            "new-registrations-per-ip-address",
            ["account"],
            id="accounts from this address",
        ),
        pytest.param(
            "Your account is temporarily prevented from requesting certificates for shop.example.org, "
            "www.example.org and possibly others. Please visit: https://portal.letsencrypt.org/sfe/v1/unpause?jwt=x",
            ["name:shop.example.org", "name:www.example.org"],
            id="paused names",
        ),
        pytest.param("Too many certificates already issued for example.org", ["domain:example.org"], id="no number"),
        pytest.param("slow down with *.shop.example.org", ["name:shop.example.org"], id="an asked name alone"),
        pytest.param("quota of example.org used up", ["domain:example.org"], id="a domain above an asked name"),
        pytest.param("quota of other.org used up", ["name_set"], id="another's name"),
        pytest.param("see https://shop.example.org/limits", ["name_set"], id="a name in a URL only"),
        pytest.param("too many requests, version 1.2.3", ["name_set"], id="unknown words"),
        pytest.param("org", ["name_set"], id="a top-level domain"),
        pytest.param("", ["name_set"], id="no words"),
    ],
)
def test_what_a_limit_is_about(detail: str, scopes: list[str]) -> None:
    """The scope is as wide as the CA says, and as narrow as can be where it doesn't."""
    assert [str(scope) for scope in limited_scopes(detail, [], NAMES)] == scopes


def test_subproblems_name_the_scope() -> None:
    """Identifiers of subproblems count, those of the order only; the top problem's text doesn't have to say them."""
    kind = "urn:ietf:params:acme:error:rateLimited"
    problems = [
        ProblemDocument(kind, "several limits", 429),
        ProblemDocument(kind, "enough", 429, "*.shop.example.org"),
        ProblemDocument(kind, "enough", 429, "elsewhere.test"),
        ProblemDocument(kind, "enough", 429, "not a name\u202e"),
    ]
    assert [str(scope) for scope in limited_scopes("several limits", problems, NAMES)] == ["name:shop.example.org"]
