"""Which URLs the broker calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import parse_url

from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError, check_endpoint

HOSTS = AllowedHosts("https://acme.test/directory", ["cdn.acme.test", "other.test:8443", "[2001:db8::1]:443"])


@pytest.mark.parametrize(
    "url",
    [
        "https://acme.test/order/1?x=y#z",
        "https://ACME.test:443/",
        "https://acme.test./",
        "https://cdn.acme.test/chain",
        "https://other.test:8443/",
        "https://[2001:db8::1]/",
    ],
)
def test_allowed(url: str) -> None:
    """The directory's host and the allow-list, however they are written."""
    assert HOSTS.check(url) == url


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://acme.test/", id="not-https"),
        pytest.param("https://acme.test:8443/", id="another-port"),
        pytest.param("https://other.test/", id="allowed-on-another-port-only"),
        pytest.param("https://acme.test.evil.test/", id="longer-name"),
        pytest.param("https://evil.test/acme.test", id="name-in-the-path"),
        pytest.param("https://acme.test@evil.test/", id="name-as-user"),
        pytest.param("https://user@acme.test/", id="user"),
        pytest.param("https://evil.test\\@acme.test/", id="backslash"),
        pytest.param("https://evil.test#@acme.test/", id="fragment"),
        pytest.param("https://acme.test%2eevil.test/", id="percent"),
        pytest.param("https://acme.test\n.evil.test/", id="newline"),
        pytest.param("https://acme\u3002test/", id="ideographic-dot"),
        pytest.param("https:///order", id="no-host"),
        pytest.param("//acme.test/", id="no-scheme"),
        pytest.param("https://acme.test:99999/", id="no-such-port"),
        pytest.param("https://[acme.test/", id="broken-brackets"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("", id="empty"),
        pytest.param(None, id="none"),
        pytest.param(["https://acme.test/"], id="a-list"),
    ],
)
def test_forbidden(url: object) -> None:
    """Everything else is refused, and the text is printable."""
    with pytest.raises(ForbiddenUrlError) as caught:
        HOSTS.check(url)
    assert str(caught.value).isprintable()


@given(st.text(st.sampled_from("acme.testvil:/@\\?#%[]0123456789 \n\t"), max_size=40))
def test_what_is_allowed_leads_there(tail: str) -> None:
    """The parser that opens the connection reads the same host in every URL that is let through."""
    try:
        url = HOSTS.check(f"https://{tail}")
    except ForbiddenUrlError:
        return
    parsed = parse_url(url)
    host = (parsed.host or "").rstrip(".")
    assert (host, parsed.port or 443) in {("acme.test", 443), ("cdn.acme.test", 443), ("other.test", 8443)}


@pytest.mark.parametrize(
    "url", ["https://dns.test/api", "http://127.0.0.1:8080", "http://[::1]/", "http://localhost/x"]
)
def test_endpoints_that_may_get_secrets(url: str) -> None:
    """Https anywhere, http to this machine."""
    assert check_endpoint(url) == url


@pytest.mark.parametrize(
    "url", ["http://dns.test/", "http://10.0.0.1/", "HTTP://dns.test/", "ftp://localhost/", "dns.test"]
)
def test_endpoints_that_may_not(url: str) -> None:
    """Nothing that would carry credentials in the clear over a network."""
    with pytest.raises(ForbiddenUrlError):
        check_endpoint(url)
