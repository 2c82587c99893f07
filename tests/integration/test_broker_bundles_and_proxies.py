"""The broker's calls to other servers: by which CAs it believes them, and through which proxy it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.issuers.outgoing import trusted_roots
from certplane.errors import ConfigurationError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from tests.support.bundles import DAY, pem, root
from tests.support.connect_proxy import ConnectProxy
from tests.support.scripted_https import ScriptedHttps, answer

pytestmark = pytest.mark.integration

Get = Callable[[str, Path], Awaitable[int]]


async def acme(url: str, bundle: Path) -> int:
    """As the calls of the CA are made."""
    ca = AcmeCa(AcmeServer(url, ca_bundle=bundle), SystemClock())
    try:
        return (await ca.http.send("GET", url)).status
    finally:
        await ca.close()


async def dns_api(url: str, bundle: Path) -> int:
    """As those of DNS APIs are, and of Vault."""
    async with new_http_client(timedelta(seconds=5), bundle) as client:
        return (await client.get(url)).status_code


GETS = [pytest.param(acme, id="ACME"), pytest.param(dns_api, id="DNS API")]


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedHttps]:
    with ScriptedHttps(tmp_path, answer("200 OK", b"{}")).running() as server:
        yield server


@pytest.mark.parametrize("get", GETS)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda ca: ca.pem, id="plain"),
        pytest.param(lambda ca: b"\xef\xbb\xbf" + ca.pem, id="byte order mark"),
        pytest.param(lambda ca: b"# M\xfcller\r\n" + ca.pem.replace(b"\n", b"\r\n"), id="CRLF and text"),
        pytest.param(lambda ca: pem(root(ca, begins=-9 * DAY, ends=-DAY)) + ca.pem, id="ended root first"),
    ],
)
async def test_bundles(server: ScriptedHttps, tmp_path: Path, get: Get, content: Callable[..., bytes]) -> None:
    """Every `ca_bundle` is taken as people keep them."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(content(server.ca))
    assert await get(server.url, bundle) == 200


@pytest.mark.parametrize("get", GETS)
async def test_no_other_ca_is_believed(server: ScriptedHttps, tmp_path: Path, get: Get) -> None:
    """The bundle's roots are the only ones."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(CertificateAuthority.root("Another").pem)
    with pytest.raises(Exception, match=r"(?i)certificate|trusted"):
        await get(server.url, bundle)
    assert server.requests == []


def test_private_key_in_a_bundle(tmp_path: Path) -> None:
    """It is refused in each of them, with the key that names the file."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(CertificateAuthority.root("X").pem + b"-----BEGIN PRIVATE KEY-----\nAA==\n")
    with pytest.raises(ConfigurationError, match=r"secrets\.vault\.ca_bundle: .*holds a private key"):
        trusted_roots(bundle, "secrets.vault.ca_bundle")


async def test_acme_goes_through_the_proxy(
    server: ScriptedHttps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an operator sets to reach a public CA is obeyed, with the CA's own certificate verified as without it."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(server.ca.pem)
    async with ConnectProxy().running() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert await acme(server.url, bundle) == 200
        assert proxy.targets == [f"127.0.0.1:{server.port}"]
        proxy.status = 403
        with pytest.raises(AcmeError):
            await acme(server.url, bundle)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await acme(server.url, bundle) == 200
        assert len(proxy.targets) == 2
