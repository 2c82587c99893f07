"""Public suffixes and registered domains, by the list that is installed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from certplane.pki.public_suffixes import is_public_suffix, registered_domain


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        pytest.param("shop.example.com", "example.com", id="below-a-top-level-domain"),
        pytest.param("a.b.example.co.uk", "example.co.uk", id="below-a-suffix-of-two-labels"),
        pytest.param("*.example.co.uk", "example.co.uk", id="a-wildcard-is-its-domain's"),
        pytest.param("example.com", "example.com", id="itself"),
        pytest.param("a.somebody.github.io", "somebody.github.io", id="the-private-section-counts"),
        pytest.param("github.io", "github.io", id="a-suffix-stands-for-itself"),
        pytest.param("co.uk", "co.uk", id="likewise"),
        pytest.param("www.ck", "www.ck", id="an-exception-of-a-wildcard-rule"),
        pytest.param("a.b.any.ck", "b.any.ck", id="a-wildcard-rule"),
        pytest.param("web1.certplane.test", "certplane.test", id="a-domain-that-the-list-lacks"),
        pytest.param("web1.xn--55qx5d.cn", "web1.xn--55qx5d.cn", id="below-a-suffix-of-A-labels"),
        pytest.param("a.shop.xn--p1ai", "shop.xn--p1ai", id="below-a-top-level-domain-of-A-labels"),
    ],
)
def test_registered_domain(name: str, domain: str) -> None:
    """The name right below a public suffix."""
    assert registered_domain(name) == domain


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("com", True),
        ("co.uk", True),
        ("xn--55qx5d.cn", True),
        ("any.ck", True),
        ("www.ck", False),
        ("example.co.uk", False),
        ("github.io", False),
        ("certplane.test", False),
        ("test", True),
    ],
)
def test_is_public_suffix(name: str, *, public: bool) -> None:
    """By the section that registries have; what owners of domains have added isn't meant."""
    assert is_public_suffix(name) is public


WHOLE = PublicSuffixList()


@given(st.lists(st.sampled_from(["a", "co", "uk", "jp", "kobe", "city", "xn--p1ai", "ck", "io", "github"]), min_size=1))
def test_it_is_read_as_the_package_reads_it(labels: list[str]) -> None:
    """The list that is read in a tenth of the time is the same."""
    name = ".".join(labels)
    assert registered_domain(name) == (WHOLE.privatesuffix(name) or name)
