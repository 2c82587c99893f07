"""A CA's names in CAA records come from its directory, and nothing but names."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme import AcmeServer
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity, caa_identities
from certplane.broker.issuers.dns.http_client import LARGEST_BODY
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.scripted_https import Script, ScriptedHttps, answer

SOON = timedelta(seconds=5)


class Directory:
    """A CA's server whose answer a test changes."""

    def __init__(self, folder: Path) -> None:
        names = {"meta": {"caaIdentities": ["CA.example", "ca.example.org."]}}
        self.script = answer("200 OK", json.dumps(names).encode(), "Connection: close")
        self.server = ScriptedHttps(folder, self._play)
        self.roots = folder / "roots.crt"
        self.roots.write_bytes(self.server.ca.pem)

    def _play(self, tls: ssl.SSLSocket, request: bytes) -> None:
        self.script(tls, request)

    def source(self, clock: ManualClock, account: str = "") -> DirectoryCaaIdentity:
        server = AcmeServer(f"{self.server.url}/directory", ca_bundle=self.roots)
        return DirectoryCaaIdentity(server, lambda: account, clock)


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
    await made.close()


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
    directory.script = answer("200 OK", b"{}", "Connection: close")
    assert (await made.caa_identity(SOON)).names == ()
    await made.close()
    await asyncio.sleep(0.01)  # the loop closes the transports of connections that broke off in its next rounds


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read(body: object) -> None:
    """Whatever a directory says of itself, only plain names come out."""
    for wrapped in (body, {"meta": body}, {"meta": {"caaIdentities": body}}, {"meta": {"caaIdentities": [body]}}):
        assert all(name.isascii() and name.isprintable() for name in caa_identities(json.loads(json.dumps(wrapped))))
