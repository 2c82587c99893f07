"""By which CAs certplanectl believes a broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from certplane.ctl.client import Client
from certplane.ctl.settings import load_settings
from certplane.errors import ConfigurationError, OperationError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.loopback import free_port
from tests.fakes.agent_broker import FakeBroker
from tests.support.broker_server import BrokerServer
from tests.support.bundles import DAY, pem, root
from tests.support.lineages import LocalIssuer


def client(folder: Path, url: str, ca: CertificateAuthority, bundle: bytes) -> Client:
    """A client by this bundle, with an identity of the same CA."""
    ca.issue("alice", ["alice.example"]).write(folder, "operator")
    (folder / "bundle.pem").write_bytes(bundle)
    settings = {
        "broker": {"url": url, "server_ca_bundle": "bundle.pem"},
        "identity": {"cert": "operator.crt", "key": "operator.key"},
    }
    (folder / "ctl.yml").write_text(yaml.safe_dump(settings))
    return Client(load_settings(folder / "ctl.yml").named(""))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda ca: pem(root(ca, begins=-9 * DAY, ends=-DAY)) + ca.pem, id="ended root first"),
        pytest.param(lambda ca: b"\xef\xbb\xbf" + ca.pem, id="byte order mark"),
    ],
)
async def test_bundles_as_people_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[CertificateAuthority], bytes]
) -> None:
    """The call arrives, whatever the bundle has beside the CA that counts and whatever proxy the shell has."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    ca = CertificateAuthority.root("Internal")
    broker = FakeBroker(SystemClock(), LocalIssuer())
    async with (
        BrokerServer(broker, ca, ca.issue("broker", ["localhost"])).running() as server,
        client(tmp_path, server.url, ca, content(ca)) as fleet,
    ):
        with pytest.raises(OperationError, match="doesn't know this call"):  # this broker has no fleet
            await fleet.host("web1")


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        pytest.param(lambda ca: ca.pem + b"-----BEGIN PRIVATE KEY-----\nAA==\n", "holds a private key", id="key"),
        pytest.param(lambda ca: pem(root(ca, begins=-9 * DAY, ends=-DAY)), "no certificate that is still", id="ended"),
    ],
)
async def test_bundle_that_is_refused(
    tmp_path: Path, content: Callable[[CertificateAuthority], bytes], phrase: str
) -> None:
    """Cause and place, before anything is sent."""
    ca = CertificateAuthority.root("Internal")
    with pytest.raises(ConfigurationError, match=rf"ctl\.yml:\d+: broker\.server_ca_bundle: .*{phrase}"):
        client(tmp_path, "https://localhost:1", ca, content(ca))
