"""Names that are made of labels: one profile for hosts that each have names of their own."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.policy.cases import Outcome, run_cases
from certplane.broker.policy.decision import decide_again
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.config.document import Document
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.pki.names import canonical_dns_name

SHOP = """
profiles:
  shop: {type: multi_san, dns_names: ["{label}.Shop.example.com", "{labels.dc}.example.com", shop.example.com]}
  plain: {type: multi_san, dns_names: [a.example.com]}
hosts:
  web1: {identity: web1.id, profiles: [shop, plain], labels: {dc: fra1, ring: canary}}
  Web2: {identity: web2.id, profiles: [shop], labels: {dc: fra1, ring: rest}}
  web3: {identity: web3.id, profiles: [plain], labels: {ring: canary}}
"""


def read(text: str, private: tuple[str, ...] = ()) -> PolicyDocument:
    return read_policy(Document.parse(text.encode(), "policy.yml"), private)


def problems(text: str, private: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(text, private)
    return [str(problem).removeprefix("policy.yml:") for problem in caught.value.problems]


def test_each_identity_gets_its_own_names() -> None:
    """Literal names, canonical; what the profile says besides is the same for all; a profile without any is as before."""
    policy = read(SHOP)
    first, second = (policy.granted(f"web{number}.id", "shop") for number in (1, 2))
    assert first is not None
    assert second is not None
    assert first.dns_names == ("fra1.example.com", "shop.example.com", "web1.shop.example.com")
    assert second.dns_names == ("fra1.example.com", "shop.example.com", "web2.shop.example.com")
    assert first.hash != second.hash
    written = policy.find_profile("shop")
    assert written is not None
    assert written.dns_names == ("shop.example.com", "{labels.dc}.example.com", "{label}.shop.example.com")
    assert (written.name, written.kind, written.issuers) == (first.name, first.kind, first.issuers)
    assert policy.granted("web1.id", "plain") is policy.find_profile("plain") is policy.granted("web3.id", "plain")
    assert policy.issued("shop") == [first, second]
    assert policy.names_of("shop") == {*first.dns_names, *second.dns_names}
    for identity, profile in (("web3.id", "shop"), ("web1.id", "nothing"), ("nobody.id", "shop")):
        assert policy.granted(identity, profile) is None


def test_names_from_labels_are_as_if_written() -> None:
    """The hash that stands for a certificate doesn't change when a profile's names are written as placeholders."""
    head = (
        "hosts: {web1: {identity: web1.id, profiles: [shop], labels: {dc: fra1}}}\nprofiles: {shop: {type: multi_san, "
    )
    literal = read(head + "dns_names: [web1.fra1.example.com]}}\n").granted("web1.id", "shop")
    assert read(head + "dns_names: ['{label}.{labels.dc}.example.com']}}\n").granted("web1.id", "shop") == literal


def test_hosts_with_the_same_names_share_them() -> None:
    """What is expanded costs memory once for each set of names."""
    text = "profiles: {p: {type: multi_san, dns_names: ['{labels.dc}.example.com']}}\nhosts:\n"
    text += "".join(f"  h{n}: {{identity: h{n}.id, profiles: [p], labels: {{dc: dc{n % 2}}}}}\n" for n in range(10))
    policy = read(text)
    assert policy.granted("h0.id", "p") is policy.granted("h8.id", "p")
    assert [profile.dns_names for profile in policy.issued("p")] == [("dc0.example.com",), ("dc1.example.com",)]
    assert policy.grants[0].labels is policy.grants[2].labels


def test_a_decision_is_by_the_callers_own_names() -> None:
    """Another host's name of the same profile is none of the caller's, and the refusal names the caller's alone."""
    policy = read(SHOP)
    own = ("fra1.example.com", "shop.example.com", "web1.shop.example.com")
    assert decide_again(policy, "web1.id", "shop", own) is policy.granted("web1.id", "shop")
    with pytest.raises(RefusalError, match=r"lacks web2\.shop\.example\.com and asks for web1\.shop") as caught:
        decide_again(policy, "web2.id", "shop", own)
    assert caught.value.refusal.reason is Reason.NAMES_NOT_ALLOWED
    with pytest.raises(RefusalError) as caught:
        decide_again(policy, "web3.id", "shop", own)
    assert caught.value.refusal.reason is Reason.PROFILE_NOT_ALLOWED


def test_hosts_by_label() -> None:
    """One of several is enough; a label without hosts has none."""
    policy = read(SHOP)
    assert policy.hosts_with(["ring=canary"]) == {"web1.id", "web3.id"}
    assert policy.hosts_with(["ring=rest", "dc=fra1"]) == {"web1.id", "web2.id"}
    assert policy.hosts_with(["ring=typo"]) == frozenset()


ONE = "profiles:\n  p: {type: TYPE, dns_names: [NAMES]}\nhosts:\n  HOST\n"


@pytest.mark.parametrize(
    ("names", "host", "expected"),
    [
        pytest.param("'{lable}.example.com'", "h: {identity: h.id}", ["has {lable}, which stands"], id="a-typo"),
        pytest.param("'{labels.}.example.com'", "h: {identity: h.id}", ["has {labels.}, which"], id="no-key"),
        pytest.param(
            "'{{label}}.example.com'", "h: {identity: h.id}", ["a brace that doesn't belong"], id="a-template"
        ),
        pytest.param("'{label.example.com'", "h: {identity: h.id}", ["a brace that doesn't belong"], id="left-open"),
        pytest.param("'{label}..example.com'", "h: {identity: h.id}", ["has an empty label"], id="an-empty-label"),
        pytest.param("'{label}.localhost'", "h: {identity: h.id}", ["names under .localhost"], id="special-use"),
        pytest.param(
            "'{label}.internal'",
            "h: {identity: h.id, profiles: [p]}",
            ["p.dns_names[0]: is {label}.internal: names under .internal are not public"],
            id="a-private-network",
        ),
        pytest.param(
            "'{labels.dc}.example.com'",
            "h: {identity: h.id, profiles: [p]}",
            ["h.profiles[0]: is p, whose dns_names have {labels.dc}, and there is no such label here"],
            id="a-missing-label",
        ),
        pytest.param(
            "'{labels.dc}.example.com'",
            "h: {identity: h.id, profiles: [p], labels: {dc: a_b}}",
            ["h.profiles[0]: is p, by which a name 'a_b.example.com' has a label that isn't letters"],
            id="no-name-of-the-DNS",
        ),
        pytest.param(
            "'{label}'",
            "co.uk: {identity: h.id, profiles: [p]}",
            ["profiles[0]: is p, which gives co.uk: co.uk is a public suffix"],
            id="a-public-suffix",
        ),
        pytest.param(
            "'{label}'",
            "db.internal: {identity: h.id, profiles: [p]}",
            ["profiles[0]: is db.internal: names under .internal are not public"],
            id="a-name-of-a-private-network",
        ),
        pytest.param(
            "'{label}.example.com', '*.{labels.site}.example.com'",
            "a.b: {identity: h.id, profiles: [p], labels: {site: b}}",
            ["which gives a.b.example.com, which *.b.example.com covers"],
            id="covered-by-a-wildcard",
        ),
        pytest.param(
            "a.example.com", "h: {identity: h.id, labels: {dc: a b}}", ["h.labels.dc: must be 1 to 64"], id="a-value"
        ),
        pytest.param(
            "a.example.com", "h: {identity: h.id, labels: {'a b': c}}", ["labels.a b: has a name with"], id="a-key"
        ),
        pytest.param("a.example.com", "h: {identity: h.id, labels: [a]}", ["h.labels: must be names"], id="a-list"),
        pytest.param(
            "a.example.com",
            f"h: {{identity: h.id, labels: {{{', '.join(f'l{n}: x' for n in range(21))}}}}}",
            ["has 21 labels, more than 20"],
            id="too-many",
        ),
    ],
)
def test_refuses(names: str, host: str, expected: list[str]) -> None:
    """What a name can't be made of is told where it can be changed."""
    kind = "mixed" if "*" in names else "multi_san"
    found = problems(ONE.replace("TYPE", kind).replace("NAMES", names).replace("HOST", host))
    assert len(found) == len(expected), found
    for part, problem in zip(expected, found, strict=True):
        assert part in problem


def test_all_hosts_problems_at_once() -> None:
    """Beside whatever else is wrong with the file, each with its line."""
    text = ONE.replace("TYPE", "multi_san").replace("NAMES", "'{labels.dc}.example.com'")
    text = text.replace("HOST", "h1: {identity: h.id, profiles: [p]}\n  h2: {identity: h.id, profiles: [p, q]}")
    found = problems(text)
    assert [problem.split(":")[0] for problem in found] == ["4", "5", "5", "5"]
    assert any("is h.id, the identity of hosts.h1 too" in problem for problem in found)


def test_services_have_a_label_and_no_labels() -> None:
    """A service's own label fills {label}."""
    head = "profiles: {p: {type: multi_san, dns_names: ['NAME.example.com']}}\nservices: {api: {identity: api.id, "
    profile = read(head.replace("NAME", "{label}") + "profiles: [p]}}\n").granted("api.id", "p")
    assert profile is not None
    assert profile.dns_names == ("api.example.com",)
    (found,) = problems(head.replace("NAME", "{labels.dc}") + "profiles: [p]}}\n")
    assert "only hosts have labels" in found


@pytest.mark.parametrize("name", ["co.uk", "*.co.uk", "*.com", "xn--p1ai", "*.any.ck"])
def test_public_suffixes_are_refused(name: str) -> None:
    """No CA issues for what others register names below."""
    kind = "wildcard" if name.startswith("*") else "multi_san"
    (found,) = problems(f"profiles: {{p: {{type: {kind}, dns_names: ['{name}']}}}}\n")
    assert "is a public suffix" in found or "whole top-level domain" in found or "one label only" in found


@pytest.mark.parametrize("name", ["github.io", "*.github.io", "*.example.co.uk", "*.home.arpa", "*.certplane.test"])
def test_what_an_owner_has_is_no_public_suffix(name: str) -> None:
    """The list's private section is of owners who may have certificates; private networks' domains are their own."""
    kind = "wildcard" if name.startswith("*") else "multi_san"
    assert read(f"profiles: {{p: {{type: {kind}, dns_names: ['{name}']}}}}\n", ("",)).profiles


def test_a_thousand_hosts_are_a_thousand_lines() -> None:
    """Of one profile with a name for each: read in seconds on a busy machine, and kept in two megabytes."""
    lines = [
        f"  web{n}: {{identity: web{n}.id.example.com, profiles: [shop], labels: {{ring: r{n % 10}}}}}"
        for n in range(1000)
    ]
    text = "profiles: {shop: {type: multi_san, dns_names: ['{label}.shop.example.com']}}\nhosts:\n" + "\n".join(lines)
    read(SHOP)  # the list of public suffixes is there once
    begun = time.process_time()
    tracemalloc.start()
    try:
        policy = read(text)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    spent = time.process_time() - begun
    assert len(policy.issued("shop")) == 1000
    assert kept < 2_500_000, kept
    assert spent < 10, spent


WORDS = st.sampled_from(["a", "A.b", "a_b", "x" * 64, "co.uk", "internal", "xn--a", "1", "a-", "é", "", "{label}", "*"])
PIECES = st.sampled_from(
    ["{label}", "{labels.dc}", "{labels.}", "{", "}", "*.", ".", "a.", "example.com", "test", "uk"]
)


@given(
    names=st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=3),
    label=WORDS,
    labels=st.dictionaries(st.sampled_from(["dc", "ring", "a b"]), WORDS, max_size=2),
    kind=st.sampled_from(["multi_san", "wildcard", "mixed"]),
)
def test_whatever_is_written_ends_in_names_or_in_problems(
    names: list[str], label: str, labels: dict[str, str], kind: str
) -> None:
    """A policy that loads gives literal, canonical names alone, each once; nothing else is ever raised."""
    made = {
        "profiles": {"p": {"type": kind, "dns_names": names}},
        "hosts": {label: {"identity": "h.id", "profiles": ["p"], "labels": labels}},
    }
    try:
        policy = read(yaml.safe_dump(made, allow_unicode=True))
    except ConfigurationError as error:
        assert error.problems  # noqa: PT017 - both ends are right; an error without a problem is not
        return
    profile = policy.granted("h.id", "p")
    assert profile is not None
    assert list(profile.dns_names) == sorted({canonical_dns_name(name) for name in profile.dns_names})
    assert not any(brace in name for name in profile.dns_names for brace in "{}")


def test_cases_ask_by_each_identitys_own_names() -> None:
    """`policy test`: without names a case asks for those that the identity gets."""
    text = (
        "version: 1\ncases:\n"
        "  - {identity: web1.id, profile: shop, expect: allowed}\n"
        "  - {identity: web2.id, profile: shop, expect: NAMES_NOT_ALLOWED, dns_names: [web1.shop.example.com]}\n"
        "  - {identity: web3.id, profile: shop, expect: PROFILE_NOT_ALLOWED}\n"
    )
    results = run_cases(Document.parse(text.encode(), "cases.yml"), read(SHOP))
    assert [result.outcome for result in results] == [
        Outcome.ALLOWED,
        Outcome.NAMES_NOT_ALLOWED,
        Outcome.PROFILE_NOT_ALLOWED,
    ]
    assert all(result.passed for result in results)
