"""certplane.client at a real broker: Pebble, step-ca and the broker as processes, mTLS between them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.client import (
    Certificate,
    CertificateKeeper,
    Client,
    KeyType,
    OperationError,
    Reason,
    RefusalError,
    RevocationReason,
    SyncCertificateKeeper,
    SyncClient,
)
from certplane.pki.keys import load_private_key, public_key_sha256
from certplane.v1 import fleet_pb2, fleet_pb2_grpc
from tests.support.client_site import OPERATOR, SERVICE, ClientSite
from tests.support.waiting import HANG, no_hang, until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


class Site(ClientSite):
    """With clients."""

    @asynccontextmanager
    async def client(self, name: str = SERVICE) -> AsyncIterator[Client]:
        async with Client.from_config(await self.config(name)) as client:
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("client")
    async with Site.running(folder) as site:
        yield site  # type: ignore[misc]


async def test_a_caller_learns_who_it_is(site: Site) -> None:
    """The names of its profiles come with it, so that nobody writes them twice."""
    async with site.client() as client:
        me = await client.identity()
    assert (me.name, me.kind, me.label, me.profiles) == ("api.certplane.test", "service", "api", ("api", "wide"))
    assert me.dns_names["wide"] == ("a.api.example.test", "b.api.example.test")


async def test_issue(site: Site) -> None:
    """One line brings a certificate of the profile's names for a key that was made here."""
    async with site.client() as client:
        issued = await client.issue(profile="api")
        leaf = x509.load_pem_x509_certificates(issued.fullchain_pem.encode())[0]
        key = load_private_key(issued.private_key_pem)
        assert public_key_sha256(key.public_key()) == public_key_sha256(leaf.public_key())
        assert issued.certificate.dns_names == ("api.example.test",)
        assert issued.certificate.renew_time is not None
        assert b"PRIVATE" not in repr(issued).encode()
        again = await client.certificate(issued.certificate.certificate_id)
        assert again.fullchain_pem == issued.fullchain_pem


async def test_lists_page_by_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list goes on over its pages; what isn't usable is in it on request."""
    monkeypatch.setattr("certplane.caller.calls._PAGE", 1)
    async with site.client() as client:
        first, second = [(await client.issue(profile="wide")).certificate for _ in range(2)]
        await client.revoke(first.certificate_id, RevocationReason.SUPERSEDED)

        async def listed(**wanted: Any) -> list[Certificate]:
            return [each async for each in client.certificates(profile="wide", **wanted)]

        usable = [each.certificate_id for each in await listed()]
        assert usable[0] == second.certificate_id
        assert first.certificate_id not in usable
        ids = [each.certificate_id for each in await listed(include_unusable=True)]
        assert ids[:2] == [second.certificate_id, first.certificate_id]


async def test_refusals_say_why(site: Site) -> None:
    """A profile that policy doesn't give is refused with its reason, by this side and by the broker."""
    async with site.client() as client:
        with pytest.raises(RefusalError, match="api, wide, and not web") as own:
            await client.issue(profile="web")
        assert own.value.reason is Reason.PROFILE_NOT_ALLOWED
        with pytest.raises(RefusalError) as brokers:
            await client.issue(profile="web", dns_names=["web.example.test"])
        assert (brokers.value.reason, brokers.value.retry_after) == (Reason.PROFILE_NOT_ALLOWED, None)
        assert brokers.value.request_id
        with pytest.raises(RefusalError) as order:
            await client.order("none")
        assert order.value.reason is Reason.ORDER_NOT_FOUND


async def test_a_renewed_identity_is_used(site: Site) -> None:
    """The next call after the files were replaced is made with the new certificate; half of a pair changes nothing."""
    async with site.client() as client:
        before = (await client.identity()).serial_number
        folder = site.folder / "api.certplane.test"
        renewed = await site.broker.deployment.identity_ca.issue("api.certplane.test")
        (folder / "identity.crt").write_bytes(renewed.chain_pem)
        client._connection._looked = float("-inf")
        assert (await client.identity()).serial_number == before
        renewed.write(folder, "identity")
        client._connection._looked = float("-inf")
        assert (await client.identity()).serial_number == format(renewed.certificate.serial_number, "x")
    site.broker.identities["api.certplane.test"] = renewed


async def test_a_broker_that_is_restarted(site: Site) -> None:
    """A call that meets no broker is repeated until it is back."""
    async with site.client() as client:
        await client.identity()
        await site.broker.deployment.stop_broker()
        asking = asyncio.create_task(client.identity())
        await asyncio.sleep(0)
        await site.broker.deployment.start_broker()
        async with no_hang():
            assert (await asking).label == "api"


async def test_no_broker_at_all(site: Site) -> None:
    """When the time is over the error says what a handshake finds, and what to do."""
    config = await site.config()
    port = site.broker.deployment.broker_port
    config.write_text(config.read_text().replace(f":{port}", ":1") + "timeout: 500ms\n")
    async with Client.from_config(config) as client:
        with pytest.raises(OperationError, match="check that the broker runs and its port is open"):
            await client.identity()


async def test_keys_of_other_kinds(site: Site) -> None:
    """RSA for what still needs it."""
    async with site.client() as client:
        issued = await client.issue(profile="api", key_type=KeyType.RSA_2048)
    assert load_private_key(issued.private_key_pem).key_size == 2048


def handshake(port: int, roots: Path) -> x509.Certificate:
    """What a server presents to a client that checks it."""
    context = ssl.create_default_context(cafile=roots)
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="api.example.test") as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


async def test_keep_and_renew(site: Site, tmp_path: Path) -> None:
    """A server's context presents the new certificate from the next connection on; the callback hears of it."""
    heard = []
    async with site.client() as client, CertificateKeeper(client, profile="api", folder=tmp_path / "tls") as keeper:
        context = keeper.ssl_context()
        keeper.on_change(heard.append)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        roots = await site.roots()
        first = await asyncio.to_thread(handshake, port, roots)
        keeper.renew()
        async with no_hang():
            await until(lambda: heard, what="the new certificate")
        second = await asyncio.to_thread(handshake, port, roots)
        server.close()
        assert (format(second.serial_number, "x"), second.serial_number != first.serial_number) == (
            keeper.current.certificate.serial_number,
            True,
        )
        assert (tmp_path / "tls/current/fullchain.pem").read_text() == keeper.current.fullchain_pem


async def watches_of(channel: Any) -> int:
    """How many watches of the service operators see."""
    stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
    wanted = fleet_pb2.FleetFilter(hosts=["api.certplane.test"])
    listed = await stub.ListHosts(fleet_pb2.ListHostsRequest(filter=wanted), timeout=HANG)
    return sum(host.watch_count for host in listed.hosts if host.connected)


async def test_told_by_the_broker(site: Site) -> None:
    """A keeper's service is connected in the fleet, and renews the moment an operator asks for it, or it is revoked."""
    heard: list[Any] = []
    async with site.broker.channel(OPERATOR) as channel, site.client() as client:
        async with CertificateKeeper(client, profile="api") as keeper, no_hang():
            keeper.on_change(heard.append)

            async def connected() -> bool:
                return await watches_of(channel) == 1

            await until(connected, poll=0.2, what="the service in the fleet")
            await until(lambda: client._news.live, what="the stream of news")
            certificate_id = keeper.current.certificate.certificate_id
            await site.request_renewal(certificate_id)
            await until(lambda: len(heard) == 1, what="the renewal that was asked for")
            assert keeper.current.certificate.certificate_id != certificate_id
            revoked = keeper.current.certificate.certificate_id
            await client.revoke(revoked)
            await until(lambda: len(heard) == 2, what="what replaces the revoked one")
            assert keeper.current.certificate.certificate_id != revoked

        async def gone() -> bool:
            return await watches_of(channel) == 0

        await until(gone, poll=0.2, what="the end of the watch in the fleet")


async def test_news_for_whoever_watches(site: Site) -> None:
    """`watch_certificates` begins with what there is, and goes on after a restart of the broker."""
    async with site.client() as client, no_hang():
        issued = await client.issue(profile="wide")
        news = client.watch_certificates()
        async for first in news:
            if first.certificate_id == issued.certificate.certificate_id:
                break
        assert (first.dns_names, first.revoke_time) == (("a.api.example.test", "b.api.example.test"), None)
        await site.broker.deployment.start_broker()
        await client.revoke(issued.certificate.certificate_id, RevocationReason.SUPERSEDED)
        async for told in news:
            if told.revoke_time is not None and told.certificate_id == issued.certificate.certificate_id:
                break
        assert told.revocation_reason is RevocationReason.SUPERSEDED
        await news.aclose()


async def test_a_host_has_another_stream(site: Site) -> None:
    """A host's own program keeps a certificate too: without news it polls."""
    async with site.client("web1.certplane.test") as client, CertificateKeeper(client, profile="web") as keeper:
        assert keeper.current.certificate.dns_names == ("web.example.test",)
        assert not client._news.live


async def test_the_same_without_a_loop(site: Site, tmp_path: Path) -> None:
    """SyncClient and its keeper, on threads."""
    config = await site.config()

    def use() -> None:
        with SyncClient.from_config(config) as client:
            assert client.identity().label == "api"
            issued = client.issue(profile="api")
            newest = next(iter(client.certificates(profile="api")))
            assert newest.certificate_id == issued.certificate.certificate_id
            with SyncCertificateKeeper(client, profile="api", folder=tmp_path / "tls") as keeper:
                assert keeper.current.certificate.dns_names == ("api.example.test",)
                assert keeper.next_renewal > keeper.current.certificate.not_before
                assert keeper.last_error is None
                assert isinstance(keeper.ssl_context(), ssl.SSLContext)

    async with no_hang():
        await asyncio.to_thread(use)
