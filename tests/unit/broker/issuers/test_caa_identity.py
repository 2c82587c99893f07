"""A CA's names in CAA records come from its directory, and nothing but names."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_connection import LARGEST_BODY
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.scripted_https import Script, ScriptedHttps, answer

SOON = timedelta(seconds=5)


class Directory:
    """A CA's server whose answer a test changes."""

    def __init__(self, folder: Path) -> None:
        self.server = ScriptedHttps(folder, self._play)
        self.script = self.saying({"caaIdentities": ["CA.example", "ca.example.org."]})
        self.roots = folder / "roots.crt"
        self.roots.write_bytes(self.server.ca.pem)

    def _play(self, tls: ssl.SSLSocket, request: bytes) -> None:
        self.script(tls, request)

    def saying(self, meta: object) -> Script:
        urls = {name: f"{self.server.url}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert")}
        return answer("200 OK", json.dumps({**urls, "meta": meta}).encode(), "Connection: close")

    def source(self, clock: ManualClock, account: str = "") -> DirectoryCaaIdentity:
        self.ca = AcmeCa(AcmeServer(f"{self.server.url}/directory", ca_bundle=self.roots), clock)
        return DirectoryCaaIdentity(self.ca, lambda: account)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    made = Directory(tmp_path)
    with made.server.running():
        yield made


async def test_names_and_account(directory: Directory) -> None:
    """Names as CAA records are compared with them, the account as it is known now; the directory is asked hourly."""
    clock = ManualClock()
    made = directory.source(clock, "https://ca.example/acct/1")
    for _ in range(3):
        identity = await made.caa_identity(SOON)
    assert (identity.names, identity.account_url) == (("ca.example", "ca.example.org"), "https://ca.example/acct/1")
    assert [request.split(b"\r\n")[0] for request in directory.server.requests] == [b"GET /directory HTTP/1.1"]
    clock.advance(timedelta(minutes=61))
    await made.caa_identity(SOON)
    assert len(directory.server.requests) == 2
    await directory.ca.close()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(answer("503 Service Unavailable", b"", "Connection: close"), id="503"),
        pytest.param(answer("302 Found", b"", "Location: https://evil.test/", "Connection: close"), id="redirect"),
        pytest.param(answer("200 OK", b"<html>", "Connection: close"), id="html"),
        pytest.param(answer("200 OK", b" " * (LARGEST_BODY + 1), "Connection: close"), id="oversized"),
        pytest.param(lambda *_: None, id="hangs-up"),
    ],
)
async def test_directory_that_cannot_be_read(directory: Directory, script: Script) -> None:
    """A CA that is away is said to be, and asked again at the next call."""
    made = directory.source(ManualClock())
    directory.script = script
    with pytest.raises(RefusalError) as caught:
        await made.caa_identity(SOON)
    assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
    directory.script = directory.saying({})
    assert (await made.caa_identity(SOON)).names == ()
    await directory.ca.close()
    await asyncio.sleep(0.01)  # the loop closes the transports of connections that broke off in its next rounds
