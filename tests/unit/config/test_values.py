"""Addresses, URLs and names of the configuration are what they say, or a problem in words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.config.values import DnsName, HostPort, HttpsUrl, HttpUrl, IdentityName, ListenAddress, LogLevel


@pytest.mark.parametrize(
    ("text", "target", "shown"),
    [
        pytest.param(":8443", "[::]:8443", ":8443", id="all-addresses"),
        pytest.param("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", id="port-0"),
        pytest.param("broker.example:443", "broker.example:443", "broker.example:443", id="name"),
        pytest.param("[::1]:8443", "[::1]:8443", "[::1]:8443", id="ipv6"),
    ],
)
def test_listen_address(text: str, target: str, shown: str) -> None:
    """Written as in the file, bound as gRPC wants it."""
    address = ListenAddress.parse(text)
    assert address.target == target
    assert str(address) == shown


def test_host_port() -> None:
    """Brackets belong to the text, not to the address."""
    assert HostPort.parse("[2001:db8::53]:53") == HostPort("2001:db8::53", 53)
    assert str(HostPort("2001:db8::53", 53)) == "[2001:db8::53]:53"
    assert str(HostPort.parse("ns1.example:53")) == "ns1.example:53"


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        pytest.param(ListenAddress, "8443", ":port or host:port", id="port-alone"),
        pytest.param(ListenAddress, ":http", ":port or host:port", id="service-name"),
        pytest.param(ListenAddress, ":65536", "port 65536", id="port-too-high"),
        pytest.param(ListenAddress, "::1:8443", "brackets", id="ipv6-without-brackets"),
        pytest.param(ListenAddress, "[1]:8443", "no IPv6 address", id="junk-in-brackets"),
        pytest.param(ListenAddress, "a b:1", "host:port", id="space"),
        pytest.param(HostPort, ":53", "must be host:port", id="no-host"),
        pytest.param(HostPort, "ns1:0", "port 0", id="port-0"),
        pytest.param(HttpUrl, "ftp://x", "http://... or https://...", id="ftp"),
        pytest.param(HttpUrl, "//x", "http://", id="no-scheme"),
        pytest.param(HttpsUrl, "http://x", "must be a URL https://...", id="http"),
        pytest.param(HttpsUrl, "https://", "must be a URL", id="no-url-host"),
        pytest.param(HttpsUrl, "https://x:99999/", "must be a URL", id="bad-port"),
        pytest.param(HttpsUrl, "https://x:0/", "must be a URL", id="url-port-0"),
        pytest.param(HttpsUrl, "https://[x/", "must be a URL", id="bad-brackets"),
        pytest.param(HttpsUrl, "https://x/a b", "must be a URL", id="url-space"),
        pytest.param(HttpsUrl, "https://x/\n", "must be a URL", id="url-newline"),
        pytest.param(HttpsUrl, "https://u:p@x/", "user or password", id="password"),
        pytest.param(HttpsUrl, "https://x/#a", "fragment", id="fragment"),
        pytest.param(DnsName, "b\u00fccher.example", "A-label", id="unicode"),
        pytest.param(IdentityName, "*.example.com", "wildcard", id="identity-wildcard"),
        pytest.param(IdentityName, "two words", "DNS name or a URI", id="identity-words"),
        pytest.param(IdentityName, "spiffe://", "spiffe://", id="identity-empty-uri"),
        pytest.param(IdentityName, "spiffe://x/a b", "spiffe://", id="identity-uri-space"),
        pytest.param(IdentityName, "spiffe://x/" + "a" * 2048, "spiffe://", id="identity-uri-long"),
        pytest.param(LogLevel, "loud", "debug, info, warning, error", id="level"),
    ],
)
def test_refuses(kind: Any, text: str, problem: str) -> None:
    """The message says what it must be instead."""
    with pytest.raises(ValueError) as caught:
        kind.parse(text)
    assert problem in str(caught.value)


def test_identity_names() -> None:
    """A DNS name is canonical, a URI stays as written."""
    assert IdentityName.parse("Web1.Example") == "web1.example"
    assert IdentityName.parse("spiffe://Example/Host/Web1") == "spiffe://Example/Host/Web1"


def test_log_levels() -> None:
    """The usual spellings are understood."""
    assert [LogLevel.parse(text) for text in ("INFO", "warn", "Warning")] == [
        LogLevel.INFO,
        LogLevel.WARNING,
        LogLevel.WARNING,
    ]


@given(st.sampled_from([ListenAddress, HostPort, HttpUrl, HttpsUrl, DnsName, IdentityName, LogLevel]), st.text())
def test_never_raises_anything_else(kind: Any, text: str) -> None:
    """Any text ends in a value or a ValueError."""
    for candidate in (text, f"https://{text}", f"{text}:53", f"[{text}]:53"):
        with contextlib.suppress(ValueError):
            kind.parse(candidate)
