"""One name for several brokers, in a DNS that answers over UDP: which address is used, and what a change there does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from certplane.rpc import channel as channels
from certplane.rpc.channel import CHANNEL_OPTIONS, open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.sandbox.loopback import free_port
from tests.support.ca import PrivateCa
from tests.support.deployed_broker import get_identity
from tests.support.edge import HOST, EdgeServer, serve_edge, trust_of
from tests.support.scripted_dns import ScriptedDns
from tests.support.stream_host import host_of
from tests.support.waiting import until

pytestmark = pytest.mark.integration

NAME = "brokers.example"


class Zone:
    """What the name resolves to; gRPC asks this server instead of the machine's resolvers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.port = free_port()
        self.server = ScriptedDns(self._reply)
        target = f"dns://127.0.0.1:{self.server.port}/{NAME}:{self.port}"
        monkeypatch.setattr(channels, "target_from_url", lambda _: target)

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"

    def _reply(self, wire: bytes, _over_tcp: bool) -> bytes:
        query = dns.message.from_wire(wire)
        answer = dns.message.make_response(query)
        question = query.question[0]
        if question.name.to_text() == f"{NAME}." and question.rdtype == dns.rdatatype.A and self.addresses:
            answer.answer.append(dns.rrset.from_text_list(question.name, 1, "IN", "A", self.addresses))
        return answer.to_wire()

    @contextlib.asynccontextmanager
    async def broker(self, ca: PrivateCa, address: str, name: str = NAME) -> AsyncIterator[EdgeServer]:
        """A broker on one address, with a certificate for `name`."""
        async with serve_edge(ca, address=f"{address}:{self.port}") as edge:
            edge.trust.replace(trust_of(ca.issue_server([name]), ca), datetime.now(UTC))
            yield edge


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    made = Zone(monkeypatch)
    with made.server:
        yield made


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


async def test_addresses_are_taken_by_chance_and_checked_by_the_name(ca: PrivateCa, zone: Zone) -> None:
    """A fleet spreads over all of them; what answers at one without the name's certificate gets no call."""
    async with (
        zone.broker(ca, "127.0.0.1") as first,
        zone.broker(ca, "127.0.0.2") as second,
        zone.broker(ca, "127.0.0.3", "other.example") as other,
    ):
        zone.addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        credentials = channel_credentials(ca.root_pem, ca.issue([HOST]).pair)
        made = 0
        while not (first.calls > 2 and second.calls > 2):  # the order is drawn
            async with open_channel(zone.url, credentials) as channel:
                await get_identity(channel)
            made += 1
            assert made < 100
        assert first.calls + second.calls == made
        assert other.calls == 0


async def test_a_change_in_dns_is_followed_after_a_goodbye(ca: PrivateCa, zone: Zone, tmp_path: Path) -> None:
    """The next stream is a new connection, for which the name is asked anew: this host knows a single URL."""
    async with zone.broker(ca, "127.0.0.1") as first, zone.broker(ca, "127.0.0.2") as second:
        zone.addresses = ["127.0.0.1"]
        async with host_of(tmp_path, ca, zone.url) as host:
            await until(lambda: HOST in first.hub.registry)
            zone.addresses = ["127.0.0.2"]
            await first.hub.drain()  # and it still listens
            await until(lambda: HOST in second.hub.registry)
            assert host.stream.state.broker_url == zone.url


async def test_a_change_in_dns_is_followed_after_a_broker_is_gone(
    ca: PrivateCa, zone: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same channel, which asks again; gRPC asks no more than twice a minute, which is shortened here."""
    options = (*CHANNEL_OPTIONS, ("grpc.dns_min_time_between_resolutions_ms", 100))
    monkeypatch.setattr(channels, "CHANNEL_OPTIONS", options)
    async with zone.broker(ca, "127.0.0.1") as first, zone.broker(ca, "127.0.0.2") as second:
        zone.addresses = ["127.0.0.1"]
        async with host_of(tmp_path, ca, zone.url):
            await until(lambda: HOST in first.hub.registry)
            zone.addresses = ["127.0.0.2"]
            await first.server.stop(timedelta())
            await until(lambda: HOST in second.hub.registry)
