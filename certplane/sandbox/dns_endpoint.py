"""An authoritative DNS server of the sandbox as its clients see it: where it listens, its zones, and the update key.

Reading and writing goes over the wire (RFC 1035, RFC 2136 with TSIG, RFC 8945), so that the same calls work on BIND
and on the sandbox's own server. Clients of Certplane don't use this; they are what is tested with it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import dns.asyncquery
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.tsig
import dns.update

from certplane.sandbox.errors import ServerRefusedError

ANSWER_WITHIN = timedelta(seconds=60)
RECORD_TTL = timedelta(seconds=60)
NEGATIVE_TTL = timedelta(seconds=5)
"""SOA minimum: how long a resolver may remember that a name doesn't exist (RFC 2308)."""


@dataclass(frozen=True, slots=True)
class TsigKey:
    """A shared key for updates, HMAC-SHA256."""

    name: str
    secret: str = field(repr=False)
    """Base64, the form in which BIND's and Certplane's configuration hold it."""
    algorithm: str = "hmac-sha256"

    @classmethod
    def generate(cls, name: str) -> TsigKey:
        """A new random key of 256 bits."""
        return cls(name, base64.b64encode(secrets.token_bytes(32)).decode())

    @property
    def keyring(self) -> dict[dns.name.Name, dns.tsig.Key]:
        """For dnspython."""
        name = dns.name.from_text(self.name)
        return {name: dns.tsig.Key(name, self.secret, self.algorithm)}


class ZoneRecord(NamedTuple):
    """A record to add to a zone or to remove from it; `value` in zone file form."""

    name: str
    record_type: str
    value: str
    ttl: timedelta = RECORD_TTL


@dataclass(frozen=True, slots=True)
class DnsEndpoint:
    """Where a DNS server answers. All its addresses use one port, UDP and TCP.

    Attributes:
        addresses: loopback addresses; the n-th is that of name server `ns<n>` of every zone.
        zones: absolute names, lower case, without the last dot.
    """

    addresses: tuple[str, ...]
    port: int
    zones: tuple[str, ...]
    key: TsigKey

    @property
    def host_port(self) -> str:
        """The first address in the form `address:port`."""
        return f"{self.addresses[0]}:{self.port}"

    def zone_of(self, name: str) -> str:
        """The zone that holds `name`.

        Raises:
            ValueError: none does.
        """
        wanted = dns.name.from_text(name)
        holding = [zone for zone in self.zones if wanted.is_subdomain(dns.name.from_text(zone))]
        if not holding:
            raise ValueError(f"{name} is in none of the zones {', '.join(self.zones)}")
        return max(holding, key=lambda zone: zone.count("."))

    async def query(
        self, name: str, record_type: str = "TXT", *, address: str | None = None, tcp: bool = False
    ) -> dns.message.Message:
        """Ask one address (default: the first), without recursion; truncated answers are fetched again by TCP.

        Raises:
            OSError or dns.exception.DNSException: no answer in `ANSWER_WITHIN`, or garbage.
        """
        question = dns.message.make_query(name, record_type, use_edns=0, payload=1232)
        question.flags &= ~dns.flags.RD
        where, seconds = address or self.addresses[0], ANSWER_WITHIN.total_seconds()
        if tcp:
            return await dns.asyncquery.tcp(question, where, timeout=seconds, port=self.port)
        answer, _ = await dns.asyncquery.udp_with_fallback(question, where, timeout=seconds, port=self.port)
        return answer

    async def txt(self, name: str, *, address: str | None = None) -> frozenset[str]:
        """The TXT values at `name`, each as one string; empty if there are none. CNAMEs count within this server.

        Raises:
            ServerRefusedError: it answered with an error other than NXDOMAIN.
        """
        answer = await self.query(name, "TXT", address=address)
        if answer.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
            raise ServerRefusedError("the DNS server", int(answer.rcode()), dns.rcode.to_text(answer.rcode()))
        return frozenset(
            b"".join(record.strings).decode()
            for rrset in answer.answer
            for record in rrset
            if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
        )

    async def add(self, name: str, record_type: str, value: str, ttl: timedelta = RECORD_TTL) -> None:
        """Add one record beside those that are there. `value` is in zone file form; a TXT value is quoted if it isn't.

        Raises:
            ServerRefusedError: the server refused the update.
        """
        update = self._update(name)
        update.add(
            dns.name.from_text(name), int(ttl.total_seconds()), record_type, _zone_file_value(record_type, value)
        )
        await self._send(update)

    async def remove(self, name: str, record_type: str, value: str | None = None) -> None:
        """Remove one record, or all of that type at `name` when no value is given. Removing nothing is no error.

        Raises:
            ServerRefusedError: the server refused the update.
        """
        update = self._update(name)
        if value is None:
            update.delete(dns.name.from_text(name), record_type)
        else:
            update.delete(dns.name.from_text(name), record_type, _zone_file_value(record_type, value))
        await self._send(update)

    async def change(self, zone: str, *, removed: Iterable[ZoneRecord] = (), added: Iterable[ZoneRecord] = ()) -> None:
        """Remove and add records of one zone in one transaction (RFC 2136 3.7). Values as `add` takes them.

        Raises:
            ServerRefusedError: the server refused the update: nothing was changed.
        """
        update = self._update(zone)
        for record in removed:
            name, kind = dns.name.from_text(record.name), record.record_type
            update.delete(name, kind, _zone_file_value(kind, record.value))
        for record in added:
            name, kind = dns.name.from_text(record.name), record.record_type
            update.add(name, int(record.ttl.total_seconds()), kind, _zone_file_value(kind, record.value))
        await self._send(update)

    def _update(self, name: str) -> dns.update.UpdateMessage:
        return dns.update.UpdateMessage(
            self.zone_of(name),
            keyring=self.key.keyring,
            keyname=dns.name.from_text(self.key.name),
            keyalgorithm=self.key.algorithm,
        )

    async def _send(self, update: dns.update.UpdateMessage) -> None:
        answer = await dns.asyncquery.tcp(
            update, self.addresses[0], timeout=ANSWER_WITHIN.total_seconds(), port=self.port
        )
        if answer.rcode() != dns.rcode.NOERROR:
            raise ServerRefusedError("the DNS server", int(answer.rcode()), dns.rcode.to_text(answer.rcode()))


def zone_file(zone: str, endpoint: DnsEndpoint) -> str:
    """A zone with its SOA, a name server per address, and delegations to the endpoint's zones right below it."""
    ttl, negative = int(RECORD_TTL.total_seconds()), int(NEGATIVE_TTL.total_seconds())
    lines = [
        f"$ORIGIN {zone}.",
        f"$TTL {ttl}",
        f"@ IN SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 {negative}",
    ]
    for holder in (zone, *(child for child in endpoint.zones if _parent_zone(child, endpoint.zones) == zone)):
        for number, address in enumerate(endpoint.addresses, start=1):
            lines.append(f"{holder}. IN NS ns{number}.{holder}.")
            lines.append(f"ns{number}.{holder}. IN A {address}")
    return "\n".join(lines) + "\n"


def _parent_zone(child: str, zones: tuple[str, ...]) -> str | None:
    above = [zone for zone in zones if child != zone and child.endswith(f".{zone}")]
    return max(above, key=len, default=None)


def _zone_file_value(record_type: str, value: str) -> str:
    return f'"{value}"' if record_type.upper() == "TXT" and not value.startswith('"') else value
