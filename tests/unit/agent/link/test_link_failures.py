"""When no call reaches the broker: each cause in its own words, with a remedy, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from certplane.agent.link.broker import GrpcBroker
from certplane.agent.link.diagnosis import IdentityNotAcceptedError
from certplane.agent.model import Version
from certplane.errors import OperationError
from certplane.rpc.proxy import ProxyUse
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.loopback import free_port
from tests.fakes.agent_broker import FakeBroker
from tests.fakes.clock import ManualClock
from tests.support.broker_server import BrokerServer
from tests.support.bundles import DAY, pem, root
from tests.support.connect_proxy import ConnectProxy
from tests.support.identities import identity_version
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG, until

SECOND = timedelta(seconds=1)


class Links:
    """A broker, the two CAs, and links with this or that wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.agent_ca = CertificateAuthority.root("Agents")
        self.server_ca = CertificateAuthority.root("Servers")
        self.pool = BlockingPool("disk", 1)
        self.bundle = folder / "server-ca.crt"
        self.bundle.write_bytes(self.server_ca.pem)
        self.identity = identity_version(folder / "identity", self.agent_ca, "web1.example")
        self.broker = FakeBroker(self.clock, LocalIssuer())

    @contextlib.asynccontextmanager
    async def server(self, *names: str) -> AsyncIterator[BrokerServer]:
        await self.broker.use_identity(self.identity)
        credential = self.server_ca.issue("broker", names or ["localhost"])
        async with BrokerServer(self.broker, self.agent_ca, credential).running() as server:
            yield server

    def link_by_proxy(self, url: str) -> GrpcBroker:
        """A link that takes the proxy of the environment."""
        return GrpcBroker(
            [url],
            server_ca_bundle=self.bundle,
            timeout=HANG * SECOND,
            clock=self.clock,
            disk=self.pool,
            proxy=ProxyUse.ENVIRONMENT,
        )

    async def call(self, link: GrpcBroker, identity: Version) -> None:
        await link.use_identity(identity)
        await link.get_identity()

    async def failure(
        self, url: str, *, identity: Version | None = None, bundle: Path | None = None, timeout: timedelta = 5 * SECOND
    ) -> OperationError:
        """What a call to `url` fails with."""
        link = GrpcBroker(
            [url], server_ca_bundle=bundle or self.bundle, timeout=timeout, clock=self.clock, disk=self.pool
        )
        try:
            with pytest.raises(OperationError) as failed:
                await self.call(link, identity or self.identity)
        finally:
            await link.close()
        assert failed.value.remedy
        return failed.value


@pytest_asyncio.fixture
async def links(tmp_path: Path) -> AsyncIterator[Links]:
    links = Links(tmp_path)
    yield links
    links.pool.close()


async def test_nobody_listens(links: Links) -> None:
    """A broker that doesn't run."""
    error = await links.failure(f"https://localhost:{free_port()}")
    assert "can't be reached: Connection refused" in error.message
    assert "check that the broker runs" in error.remedy


async def test_the_name_is_unknown(links: Links) -> None:
    """A mistyped host."""
    error = await links.failure("https://no-such-host.invalid:8443")
    assert "can't be found" in error.message
    assert "broker.url" in error.remedy


async def test_the_server_is_of_another_ca(links: Links) -> None:
    """The configured bundle doesn't hold the CA of the broker's certificate."""
    other = links.folder / "other.crt"
    other.write_bytes(CertificateAuthority.root("Another").pem)
    async with links.server() as server:
        error = await links.failure(server.url, bundle=other)
    assert "is not trusted" in error.message
    assert "broker.server_ca_bundle" in error.remedy
    assert server.calls == []


async def test_the_server_has_another_name(links: Links) -> None:
    """The certificate is of the right CA and for another host."""
    async with links.server("broker.example") as server:
        error = await links.failure(server.url)
    assert "Hostname mismatch" in error.message
    assert "use a name of the broker's certificate" in error.remedy


async def test_the_servers_certificate_is_over(links: Links) -> None:
    """The first thing to look at is this host's clock."""
    credential = links.server_ca.issue(
        "broker", ["localhost"], not_before=links.clock.now() - timedelta(days=2), lifetime=timedelta(days=1)
    )
    async with BrokerServer(links.broker, links.agent_ca, credential).running() as server:
        error = await links.failure(server.url)
    assert "certificate has expired" in error.message
    assert "clock" in error.remedy


async def test_the_own_identity_is_over(links: Links) -> None:
    """Bad input 37: gRPC shows a closed socket; the agent knows its own dates."""
    expired = identity_version(
        links.folder / "expired",
        links.agent_ca,
        "web1.example",
        not_before=links.clock.now() - timedelta(days=2),
        lifetime=timedelta(days=1),
    )
    async with links.server() as server:
        error = await links.failure(server.url, identity=expired)
    assert "this host's identity expired at" in error.message
    assert "enroll --force" in error.remedy
    assert server.calls == []


async def test_the_own_identity_is_of_a_ca_that_the_broker_does_not_know(links: Links) -> None:
    """Bad input 38: told apart from a broker that is down, since another identity is the cure."""
    foreign = identity_version(links.folder / "foreign", CertificateAuthority.root("Foreign"), "web1.example")
    async with links.server() as server:
        error = await links.failure(server.url, identity=foreign)
    assert isinstance(error, IdentityNotAcceptedError)
    assert foreign.serial_number in error.message
    assert "agent_ca_bundle" in error.remedy
    assert server.calls == []


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends the connection at once."""


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback; yields its URL, and leaves no connection open."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(OSError):
            try:
                await handler(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
        server.close()
        for task in serving:  # grpc's attempt to connect outlives its channel
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.mark.parametrize("handler", [hang_up, speak_http], ids=["hangs up", "speaks HTTP"])
async def test_something_else_listens(links: Links, handler: Handler) -> None:
    """Another service's port."""
    async with listening(handler) as url:
        error = await links.failure(url, timeout=2 * SECOND)
    assert "doesn't agree on TLS" in error.message or "can't be reached" in error.message


async def test_a_silent_listener_costs_no_more_than_its_time(links: Links) -> None:
    """A port that takes connections and never answers: the call's deadline, and a few seconds to find out why."""
    async with listening(say_nothing) as url:
        error = await links.failure(url, timeout=SECOND)
    assert "doesn't answer" in error.message


async def test_a_server_that_is_no_broker(links: Links) -> None:
    """It speaks gRPC with mTLS, and has none of our services."""
    from certplane.rpc.credentials import KeyPair, ServerTls

    credential = links.server_ca.issue("broker", ["localhost"])
    server = grpc.aio.server()
    tls = ServerTls(KeyPair(credential.key_pem, credential.chain_pem), links.agent_ca.pem)
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    await server.start()
    error = await links.failure(f"https://localhost:{port}")
    await server.stop(None)
    assert "UNIMPLEMENTED" in error.message
    assert "is a Certplane broker" in error.remedy


@pytest.mark.parametrize("missing", ["bundle", "identity"])
async def test_a_file_is_missing(links: Links, missing: str) -> None:
    """The path is named."""
    path = links.bundle if missing == "bundle" else links.identity.path / "fullchain.pem"
    path.unlink()
    error = await links.failure("https://localhost:1")
    assert str(path) in error.message


async def test_a_broker_that_comes_back_is_found_again(links: Links) -> None:
    """The same channel serves after the broker's restart."""
    async with links.server() as server:
        port = server.port
        link = GrpcBroker(
            [server.url], server_ca_bundle=links.bundle, timeout=HANG * SECOND, clock=links.clock, disk=links.pool
        )
        await link.use_identity(links.identity)
        await link.get_identity()
    with pytest.raises(OperationError):
        await link.get_identity()
    credential = links.server_ca.issue("broker", ["localhost"])
    async with BrokerServer(links.broker, links.agent_ca, credential, port=port).running():

        async def found() -> bool:
            try:
                await link.get_identity()
            except OperationError:
                return False
            return True

        await until(found, poll=0.1, what="the broker's return")
    await link.close()


async def test_no_call_before_an_identity(links: Links) -> None:
    """Misuse, not a failure."""
    link = GrpcBroker(
        ["https://localhost:1"], server_ca_bundle=links.bundle, timeout=SECOND, clock=links.clock, disk=links.pool
    )
    with pytest.raises(RuntimeError):
        await link.get_identity()


def _successor(links: Links) -> bytes:
    return pem(root(links.server_ca, begins=-DAY, ends=3650 * DAY))


def _ended(links: Links) -> bytes:
    return pem(root(links.server_ca, begins=-3650 * DAY, ends=-DAY))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda links: _ended(links) + _successor(links), id="ended root first"),
        pytest.param(lambda links: _successor(links) + _ended(links), id="ended root last"),
        pytest.param(lambda links: _ended(links) * 3 + _successor(links) * 2, id="both repeated"),
        pytest.param(lambda links: b"\xef\xbb\xbf" + links.server_ca.pem, id="byte order mark"),
        pytest.param(lambda links: links.server_ca.pem.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda links: b"Subject: CN = M\xfcller\n" + links.server_ca.pem, id="text in front"),
        pytest.param(
            lambda links: pem(root(links.server_ca, begins=DAY, ends=4000 * DAY)) + _successor(links),
            id="root that is not valid yet first",
        ),
    ],
)
async def test_bundles_as_people_keep_them(links: Links, content: Callable[[Links], bytes]) -> None:
    """A real gRPC client connects by the bundle, whatever stands in it beside the CA that counts."""
    links.bundle.write_bytes(content(links))
    async with links.server() as server:
        link = GrpcBroker(
            [server.url], server_ca_bundle=links.bundle, timeout=HANG * SECOND, clock=links.clock, disk=links.pool
        )
        await links.call(link, links.identity)
        await link.close()


async def test_everything_in_the_bundle_has_ended(links: Links) -> None:
    """The file and the date are told, not gRPC's words."""
    links.bundle.write_bytes(_ended(links))
    async with links.server() as server:
        error = await links.failure(server.url)
    assert f"{links.bundle} has no certificate that is still valid" in error.message
    assert "ended at" in error.message
    assert "present certificate" in error.remedy


async def test_bundle_with_a_private_key(links: Links) -> None:
    """The agent's bundle is refused with a key in it, as the broker's is."""
    links.bundle.write_bytes(links.server_ca.pem + b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n")
    error = await links.failure("https://localhost:1")
    assert "holds a private key" in error.message


async def test_another_bundle_needs_no_restart(links: Links) -> None:
    """A CA that was added counts for the next calls, and a call in between says why it failed."""
    links.bundle.write_bytes(CertificateAuthority.root("Another").pem)
    async with links.server() as server:
        link = GrpcBroker(
            [server.url], server_ca_bundle=links.bundle, timeout=HANG * SECOND, clock=links.clock, disk=links.pool
        )
        await link.use_identity(links.identity)
        assert not await link.refresh()
        links.bundle.write_bytes(links.server_ca.pem)
        with pytest.raises(OperationError, match="had before"):
            await link.get_identity()
        assert await link.refresh()
        await link.get_identity()
        links.bundle.write_bytes(b"half writ")
        assert not await link.refresh()
        await link.get_identity()
        await link.close()


async def test_an_ended_ca_counts_no_longer(links: Links) -> None:
    """What ends while the agent runs is dropped then, though the file stays as it is."""
    clock = ManualClock(links.clock.now())
    links.bundle.write_bytes(pem(root(links.server_ca, begins=-DAY, ends=DAY)) + CertificateAuthority.root("Other").pem)
    link = GrpcBroker(
        ["https://localhost:1"], server_ca_bundle=links.bundle, timeout=SECOND, clock=clock, disk=links.pool
    )
    await link.use_identity(links.identity)
    assert not await link.refresh()
    clock.advance(2 * DAY)
    assert await link.refresh()
    await link.close()


@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy", "grpc_proxy"])
async def test_no_proxy_is_used_unless_told(links: Links, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A proxy for the way to the Internet, in the environment of a shell, has no part in an internal link."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    async with links.server() as server:
        link = GrpcBroker(
            [server.url], server_ca_bundle=links.bundle, timeout=HANG * SECOND, clock=links.clock, disk=links.pool
        )
        await links.call(link, links.identity)
        await link.close()


async def test_the_proxy_is_named_where_one_is_used(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `broker.proxy: environment` a proxy that isn't there is the cause, and `no_proxy` a remedy."""
    proxy = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("https_proxy", proxy)
    async with links.server() as server:
        link = links.link_by_proxy(server.url)
        with pytest.raises(OperationError) as failed:
            await links.call(link, links.identity)
        await link.close()
        assert f"the proxy {proxy} (https_proxy)" in str(failed.value)
        assert "no_proxy" in failed.value.remedy
        monkeypatch.setenv("no_proxy", "localhost")
        link = links.link_by_proxy(server.url)
        await links.call(link, links.identity)
        await link.close()


async def test_a_proxy_that_was_asked_for(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go through it, and so does the look at why there is no connection."""
    async with ConnectProxy().running() as proxy, links.server() as server:
        monkeypatch.setenv("https_proxy", proxy.url.replace("http://", "http://user:pa%73s@"))
        link = links.link_by_proxy(server.url)
        await links.call(link, links.identity)
        assert proxy.targets == [f"localhost:{server.port}"]
        said = str(await link.why_unreachable("said"))
        assert f"through the proxy {proxy.url} (https_proxy)" in said
        assert "pass" not in said
        proxy.status = 407
        assert f"refuses to connect to localhost:{server.port} (HTTP 407)" in str(await link.why_unreachable("said"))
        await link.close()
    assert set(proxy.authorizations) == {"Basic dXNlcjpwYXNz"}
