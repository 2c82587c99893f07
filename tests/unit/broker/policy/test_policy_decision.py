"""Policy says yes to exactly the profile's names and keys, and its no tells a caller nothing about others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from certplane.broker.policy.decision import NOT_ALLOWED, decide, decide_again
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.config.document import Document
from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.keys import KeyType

POLICY = """\
version: 1
profiles:
  wild: {type: wildcard, dns_names: ["*.example.com"]}
  apex: {type: mixed, dns_names: [example.com, "*.example.com"], key_types: [ec-p256, ec-p384]}
  other: {type: multi_san, dns_names: [other.example]}
hosts:
  web1: {identity: web1.example, profiles: [wild, apex]}
  web2: {identity: web2.example, profiles: [other]}
services:
  deploy: {identity: "spiffe://example/deploy", profiles: [other], roles: [renewal_watcher]}
operators:
  alice: {identity: alice.example, roles: [operator]}
"""


@pytest.fixture(scope="module")
def policy() -> PolicyDocument:
    return read_policy(Document.parse(POLICY.encode(), "policy.yml"))


@dataclass(frozen=True)
class Csr:
    dns_names: tuple[str, ...]
    key_type: KeyType = KeyType.EC_P256


@pytest.mark.parametrize(
    ("caller", "profile", "names"),
    [
        pytest.param("web1.example", "wild", ("*.example.com",), id="wildcard"),
        pytest.param("web1.example", "apex", ("*.example.com", "example.com"), id="apex-and-wildcard"),
        pytest.param("spiffe://example/deploy", "other", ("other.example",), id="service"),
    ],
)
def test_allows(policy: PolicyDocument, caller: str, profile: str, names: tuple[str, ...]) -> None:
    """Exactly the profile's names, for an identity that has the profile."""
    allowed = decide(policy, caller, profile, Csr(names))
    assert allowed is policy.find_profile(profile)
    assert decide_again(policy, caller, profile, names) is allowed


def _refusal(policy: PolicyDocument, caller: str, profile: str, csr: Csr) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        decide(policy, caller, profile, csr)
    return caught.value.refusal


@pytest.mark.parametrize(
    ("caller", "profile", "reason"),
    [
        pytest.param("web1.example", "nothing", Reason.PROFILE_NOT_ALLOWED, id="row33-unknown-profile"),
        pytest.param("web1.example", "other", Reason.PROFILE_NOT_ALLOWED, id="row33-anothers-profile"),
        pytest.param("web1.example", "", Reason.PROFILE_NOT_ALLOWED, id="no-profile"),
        pytest.param("alice.example", "wild", Reason.PROFILE_NOT_ALLOWED, id="operator"),
        pytest.param("stranger.example", "wild", Reason.IDENTITY_UNKNOWN, id="unknown-identity"),
        pytest.param("Web1.example", "wild", Reason.IDENTITY_UNKNOWN, id="name-not-canonical"),
    ],
)
def test_who(policy: PolicyDocument, caller: str, profile: str, reason: Reason) -> None:
    """Who may not, and what is not there, read alike: nobody can list the policy by asking."""
    refusal = _refusal(policy, caller, profile, Csr(("*.example.com",)))
    assert refusal == Refusal(reason, NOT_ALLOWED)


@pytest.mark.parametrize(
    ("profile", "names", "phrases"),
    [
        pytest.param("apex", ("example.com",), ["lacks *.example.com"], id="name-missing"),
        pytest.param(
            "apex", ("*.example.com", "example.com", "www.example.com"),
            ["asks for www.example.com, which the profile doesn't have"], id="row13-extra-name",
        ),
        pytest.param("wild", ("*.com",), ["lacks *.example.com", "asks for *.com"], id="row28-tld-wildcard"),
        pytest.param("wild", ("*",), ["asks for *,"], id="row28-bare-wildcard"),
        pytest.param("wild", ("*.example.com", "example.com"), ["asks for example.com"], id="apex-under-a-wildcard-grant"),
        pytest.param("wild", ("www.example.com",), ["lacks *.example.com", "asks for www.example.com"], id="name-under-the-wildcard"),
        pytest.param("apex", ("*.sub.example.com", "example.com"), ["asks for *.sub.example.com"], id="row30-wildcard-elsewhere"),
        pytest.param("wild", ("printer.local",), ["asks for printer.local"], id="row31-special-use"),
        pytest.param("wild", ("co.uk",), ["asks for co.uk"], id="row31-public-suffix"),
        pytest.param("wild", ("*.xn--example-9d0b.com",), ["asks for *.xn--example-9d0b.com"], id="row26-homograph"),
    ],
)  # fmt: skip
def test_which_names(policy: PolicyDocument, profile: str, names: tuple[str, ...], phrases: list[str]) -> None:
    """What is missing and what is too much is said: both are the caller's own."""
    refusal = _refusal(policy, "web1.example", profile, Csr(names))
    assert refusal.reason is Reason.NAMES_NOT_ALLOWED
    assert all(phrase in refusal.message for phrase in phrases)


def test_many_names_are_cut(policy: PolicyDocument) -> None:
    """A hundred wrong names don't make a page of message."""
    refusal = _refusal(policy, "web1.example", "wild", Csr(tuple(f"w{n:03}.example" for n in range(100))))
    assert "w019.example and 80 more" in refusal.message
    assert "w020.example" not in refusal.message


def test_which_keys(policy: PolicyDocument) -> None:
    """A kind of key that the profile doesn't take is named beside those it takes."""
    refusal = _refusal(policy, "web1.example", "apex", Csr(("*.example.com", "example.com"), KeyType.RSA_2048))
    assert refusal.reason is Reason.KEY_WEAK
    assert refusal.message == "this profile takes no rsa-2048 keys; use one of ec-p256, ec-p384"
    assert [violation.subject for violation in refusal.violations] == ["csr_pem"]


def test_permission_comes_before_names_and_keys(policy: PolicyDocument) -> None:
    """Somebody else's profile is refused as such, whatever else is wrong with the request."""
    refusal = _refusal(policy, "web2.example", "apex", Csr(("x.example",), KeyType.RSA_2048))
    assert refusal.reason is Reason.PROFILE_NOT_ALLOWED
