"""Which URLs the broker calls."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.issuers.outgoing import (
    AllowedHosts,
    ForbiddenUrlError,
    check_endpoint,
    environment_proxy,
    trusted_roots,
)
from certplane.errors import ConfigurationError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.runtime.clock import SystemClock
from tests.support.authority import Authority
from tests.support.scripted_https import ScriptedHttps

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
    parsed = httpx.URL(url)
    host = parsed.host.rstrip(".")
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


@pytest.mark.parametrize(
    ("url", "secret", "private_http", "good"),
    [
        pytest.param("http://dns.test/", False, False, True, id="nothing-secret"),
        pytest.param("http://8.8.8.8/", False, False, True, id="nothing-secret-to-anybody"),
        pytest.param("ftp://dns.test/", False, False, False, id="another-scheme"),
        pytest.param("http://user@dns.test/", False, False, False, id="a-secret-in-the-url"),
        pytest.param("http://10.1.2.3:8200", True, True, True, id="private-address"),
        pytest.param("http://[fd00::1]:8200", True, True, True, id="private-address-of-ipv6"),
        pytest.param("http://vault.internal:8200", True, True, True, id="a-name-is-the-operator's-word"),
        pytest.param("http://8.8.8.8:8200", True, True, False, id="public-address"),
        pytest.param("http://[2606:4700::1]:8200", True, True, False, id="public-address-of-ipv6"),
        pytest.param("http://10.1.2.3:8200", True, False, False, id="private-address-not-allowed"),
    ],
)
def test_endpoints_in_the_clear(url: str, secret: bool, private_http: bool, good: bool) -> None:
    """Http is for what holds no secret, and for a private network where the operator says so."""
    if good:
        assert check_endpoint(url, secret=secret, private_http=private_http) == url
        return
    with pytest.raises(ForbiddenUrlError):
        check_endpoint(url, secret=secret, private_http=private_http)


@pytest.mark.parametrize(
    ("environment", "proxied"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"HTTP_PROXY": "http://proxy.test"}, False, id="http-alone"),
        pytest.param({"HTTPS_PROXY": "http://proxy.test"}, True, id="https"),
        pytest.param({"https_proxy": "proxy.test"}, True, id="without-a-scheme"),
        pytest.param({"all_proxy": "http://proxy.test"}, True, id="all"),
        pytest.param({"https_proxy": "http://proxy.test", "NO_PROXY": "*"}, False, id="never"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": "other.test, ACME.test"}, False, id="host"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": ".test"}, False, id="domain"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": "me.test"}, True, id="end-of-a-label"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": "acme.test:14000"}, False, id="port"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": "acme.test:443"}, True, id="another-port"),
        pytest.param({"https_proxy": "http://proxy.test", "no_proxy": ",,10.0.0.0/8,/"}, True, id="nothing-of-use"),
    ],
)
def test_proxies(environment: dict[str, str], proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is the environment's, but for hosts that it excepts."""
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy("acme.test", 14000) == ("http://proxy.test" if proxied else "")


@pytest.mark.parametrize(
    ("address", "proxied"),
    [("10.1.2.3", False), ("11.1.2.3", True), ("fd00::1", False), ("fe00::1", True), ("127.0.0.1", True)],
)
def test_networks_without_a_proxy(address: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`no_proxy` may name networks."""
    monkeypatch.setenv("https_proxy", "http://proxy.test")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,fd00::/8")
    assert environment_proxy(address, 443) == ("http://proxy.test" if proxied else "")


AS_TOOLS_WRITE_THEM = [
    pytest.param(lambda pem: pem, id="plain"),
    pytest.param(lambda pem: b"\xef\xbb\xbf" + pem, id="byte-order-mark"),
    pytest.param(lambda pem: b"Certificate:\n    Data:\n" + pem, id="text-in-front"),
    pytest.param(lambda pem: pem.replace(b"\n", b"\r\n") + b"\x1a", id="dos"),
    pytest.param(lambda pem: b"\xef\xbb\xbf" + pem + Authority("Other").root_pem, id="byte-order-mark-and-two"),
]


def _answer(tls: ssl.SSLSocket, _request: bytes) -> None:
    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


async def _fetch(server: ScriptedHttps, roots: Path) -> str:
    url = f"{server.url}/directory"
    ca = AcmeCa(AcmeServer(url, ca_bundle=roots), SystemClock())
    try:
        return (await ca.http.send("GET", url)).text
    finally:
        await ca.close()


@pytest.mark.parametrize("change", AS_TOOLS_WRITE_THEM)
async def test_roots_as_tools_write_them(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """The roots of a private CA and of an API are read by the one reader of PEM, whoever wrote the file."""
    roots = tmp_path / "roots.pem"
    with ScriptedHttps(tmp_path, _answer).running() as server:
        roots.write_bytes(change(server.ca.pem))
        assert await _fetch(server, roots) == "{}"
        async with new_http_client(timedelta(seconds=5), roots) as client:
            assert (await client.get(server.url)).text == "{}"


async def test_roots_are_the_only_ones(tmp_path: Path) -> None:
    """Whoever names a file of roots trusts these and no public ones beside them."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(Authority().root_pem)
    assert trusted_roots(roots, "issuer.acme.ca_bundle").cert_store_stats()["x509_ca"] == 1
    with ScriptedHttps(tmp_path, _answer).running() as server, pytest.raises(AcmeError, match="certificate"):
        await _fetch(server, roots)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        pytest.param(b"", "no PEM block", id="empty"),
        pytest.param(b"\xff\xfe-", "UTF-16", id="utf-16"),
        pytest.param(b"-----BEGIN CERTIFICATE-----\nAAAA\n", "cut off", id="cut-off"),
        pytest.param(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "can't be read", id="junk"),
        pytest.param(private_key_pem(generate_private_key(KeyType.EC_P256)), "holds a private key", id="key"),
    ],
)
def test_roots_that_are_none(content: bytes, phrase: str, tmp_path: Path) -> None:
    """A file that holds no roots is told with the key that names it."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(content)
    with pytest.raises(ConfigurationError, match=phrase) as caught:
        trusted_roots(roots, "secrets.vault.ca_bundle")
    (problem,) = caught.value.problems
    assert problem.key == "secrets.vault.ca_bundle"
    assert str(roots) in problem.message
