"""What `ServiceProbe` promises, asked of the fake and of the real one before a TLS server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent.install.probe import TlsProbe
from certplane.agent.model import Version
from certplane.agent.ports import ServiceProbe
from certplane.pki.chain import leaf_facts
from certplane.runtime.clock import SystemClock
from tests.fakes.agent_install import FakeServiceProbe
from tests.support.lineages import LocalIssuer

NAME = "www.example.org"
ISSUER = LocalIssuer()


class Site:
    """A service and who looks at it."""

    def __init__(self, probe: ServiceProbe, folder: Path, context: ssl.SSLContext | None) -> None:
        self.probe = probe
        self._folder = folder
        self._context = context
        self._number = 0

    def serve(self) -> Version:
        """A new certificate is served from now on."""
        self._number += 1
        key, certificate = ISSUER.pair(NAME)
        facts = leaf_facts(certificate)
        path = self._folder / "pair.pem"
        path.write_bytes(key + certificate.encode())
        version = Version(
            self._number,
            path,
            (NAME,),
            facts.serial_number,
            facts.public_key_sha256,
            facts.not_before,
            facts.not_after,
        )
        if isinstance(self.probe, FakeServiceProbe):
            self.probe.served = version
        if self._context is not None:
            self._context.load_cert_chain(path)
        return version


@pytest.fixture(params=["fake", "tls"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A service that serves nothing yet."""
    if request.param == "fake":
        yield Site(FakeServiceProbe(), tmp_path, None)
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    probe = TlsProbe(
        "127.0.0.1",
        server.sockets[0].getsockname()[1],
        server_name=NAME,
        timeout=timedelta(seconds=10),
        attempts=2,
        interval=timedelta(milliseconds=10),
        clock=SystemClock(),
    )
    yield Site(probe, tmp_path, context)
    server.close()
    await server.wait_closed()


async def test_what_should_be_served_is(site: Site) -> None:
    """A view without a problem, with the leaf that is the version's."""
    version = site.serve()
    view = await site.probe.look(version)
    assert view.well
    assert view.leaf is not None
    assert (view.leaf.serial_number, view.leaf.public_key_sha256) == (version.serial_number, version.public_key_sha256)
    assert (view.leaf.not_before, view.leaf.not_after) == (version.not_before, version.not_after)


async def test_something_else_is_served(site: Site) -> None:
    """A view with a problem, and the leaf that is served."""
    wanted = site.serve()
    other = site.serve()
    view = await site.probe.look(wanted)
    assert not view.well
    assert view.leaf is not None
    assert view.leaf.serial_number == other.serial_number


async def test_nothing_is_served(site: Site) -> None:
    """A view with a problem and no leaf; nothing is raised."""
    version = Version(1, Path("/nowhere"), (NAME,), "1", "f" * 64, ISSUER._now, ISSUER._now)
    view = await site.probe.look(version)
    assert not view.well
    assert view.leaf is None


async def test_a_name_that_is_none_is_a_finding() -> None:
    """Not an unexpected fault: the activation would be begun again and again, each time with a reload."""
    _, certificate = ISSUER.pair(NAME)
    facts = leaf_facts(certificate)
    version = Version(
        1, Path("/nowhere"), (NAME,), facts.serial_number, facts.public_key_sha256, facts.not_before, facts.not_after
    )
    second = timedelta(seconds=1)
    probe = TlsProbe(
        "www..example", 443, server_name=NAME, timeout=second, attempts=1, interval=second, clock=SystemClock()
    )
    view = await probe.look(version)
    assert view.leaf is None
    assert "no host name" in view.problem
