"""TXT records by dynamic update (RFC 2136), signed with TSIG (RFC 8945), sent over TCP to one primary server.

Adding a record that stands and removing one that is gone are no errors of the protocol, so both can be repeated. The
zone is found by asking the same server for the SOA that it has authority over, signed too, since servers choose their
view by the key.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from secrets import token_hex

import dns.asyncquery
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.tsig
import dns.update
from typing_extensions import override

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.asking import addresses_of
from certplane.broker.issuers.dns.dns_messages import MALFORMED, Answer, NoDnsAnswerError, alias_in, name_of
from certplane.broker.issuers.dns.provider import (
    AccountFinding,
    CheckableProvider,
    DnsProvider,
    NoSuchZoneError,
    while_unavailable,
)
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.spans import dns_span
from certplane.broker.model import TxtRecord
from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError

_NAME_RCODES = frozenset({dns.rcode.NOERROR, dns.rcode.NXDOMAIN})


@dataclass(frozen=True, slots=True)
class _Key:
    name: dns.name.Name
    algorithm: str
    keyring: dict[dns.name.Name, dns.tsig.Key] = field(repr=False)


class Rfc2136Provider(DnsProvider, CheckableProvider):
    """A `DnsProvider` that speaks to a name server itself."""

    def __init__(self, settings: Rfc2136Settings, secrets: SecretSource, rng: random.Random) -> None:
        """Nothing is sent yet; the key is read at each use."""
        self._settings, self._secrets, self._rng = settings, secrets, rng

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        key = await self._key(record.credentials)
        zone = await self._zone_of(record.name, key, deadline)
        update = self._update(zone, key)
        update.add(name_of(record.name), int(self._settings.ttl.total_seconds()), _txt(record.value))
        await self._send(update, f"add a TXT record in {zone}", deadline)
        return replace(record, zone=str(zone).rstrip("."))

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        key = await self._key(record.credentials)
        zone = name_of(record.zone) if record.zone else await self._zone_of(record.name, key, deadline)
        update = self._update(zone, key)
        update.delete(name_of(record.name), _txt(record.value))
        await self._send(update, f"remove a TXT record in {zone}", deadline)

    @override
    async def check_account(self, credentials: str, deadline: Deadline) -> Sequence[AccountFinding]:
        """What a key may do shows with a zone only."""
        await self._key(credentials)
        return ()

    @override
    async def check_zone(self, name: str, credentials: str, deadline: Deadline) -> str:
        """Removes a record that isn't there, which needs the same permission."""
        key = await self._key(credentials)
        zone = await self._zone_of(name, key, deadline)
        update = self._update(zone, key)
        update.delete(name_of(name), _txt(f"certplane preflight {token_hex(8)}"))
        await self._send(update, f"change TXT records in {zone}", deadline)
        return str(zone).rstrip(".")

    async def _key(self, credentials: str) -> _Key:
        name = credentials or self._settings.tsig_secret
        *prefix, secret = (await self._secrets.read(name)).strip().split(":")
        key_name = prefix[-1] if prefix else self._settings.tsig_name
        algorithm = prefix[0] if len(prefix) == 2 else self._settings.tsig_algorithm
        try:
            owner = name_of(key_name)
            content = base64.b64decode(secret, validate=True)
            if not content or name_of(algorithm) not in dns.tsig.mac_sizes:
                raise ValueError("no key, or an unknown algorithm")  # noqa: TRY301 - one answer for all that is wrong
        except ValueError:
            # The cause may quote the secret: it is cut off on purpose.
            message = f"the secret {name!r} isn't a TSIG key: base64, name:base64 or algorithm:name:base64"
            raise RefusalError(Reason.DNS_REJECTED, message) from None
        return _Key(owner, algorithm, {owner: dns.tsig.Key(owner, content, algorithm)})

    def _update(self, zone: dns.name.Name, key: _Key) -> dns.update.UpdateMessage:
        return dns.update.UpdateMessage(zone, keyring=key.keyring, keyname=key.name, keyalgorithm=key.algorithm)

    async def _zone_of(self, name: str, key: _Key, deadline: Deadline) -> dns.name.Name:
        """The zone that holds `name` at this server: the nearest SOA, upward (RFC 2136 5, RFC 2308 3).

        A name that the server can't answer for (a CNAME that leads to itself, a wildcard's too) is passed over, and a
        name below the zone's apex then says which zone it is. Where only the apex answers, a zone in between may be out
        of order: then that is waited for.
        """
        what, failed = f"tell the zone of {name}", False
        candidate = name_of(name)
        while candidate != dns.name.root:
            answer = await self._exchange(_soa_query(candidate, key), what, deadline, servfail=True)
            if answer.rcode() == dns.rcode.SERVFAIL:
                failed = True
                candidate = candidate.parent()
                continue
            # What stands beside a CNAME (a wildcard's, say) is about its target, which may be in another zone.
            is_alias = bool(alias_in(Answer.of(answer), candidate))
            if answer.rcode() in _NAME_RCODES and answer.flags & dns.flags.AA and not is_alias:
                # The zone's own SOA: as the answer at its apex, else beside the answer that there is nothing.
                for rrset in (*answer.answer, *answer.authority):
                    if rrset.rdtype == dns.rdatatype.SOA and candidate.is_subdomain(rrset.name):
                        if failed and candidate == rrset.name:
                            return await self._zone_in_time(name, key, deadline)
                        return rrset.name
            candidate = candidate.parent()
        if failed:
            return await self._zone_in_time(name, key, deadline)
        message = f"the DNS server {self._settings.server} isn't authoritative for a zone that holds {name}"
        raise NoSuchZoneError(message)

    async def _zone_in_time(self, name: str, key: _Key, deadline: Deadline) -> dns.name.Name:
        """The zone once the server answers for the name itself: SERVFAIL may pass."""
        await self._exchange(_soa_query(name_of(name), key), f"tell the zone of {name}", deadline)
        return await self._zone_of(name, key, deadline)

    async def _send(self, update: dns.update.UpdateMessage, what: str, deadline: Deadline) -> None:
        answer = await self._exchange(update, what, deadline)
        if answer.rcode() != dns.rcode.NOERROR:
            message = f"the DNS server {self._settings.server} refused to {what}: {dns.rcode.to_text(answer.rcode())}"
            raise RefusalError(Reason.DNS_REJECTED, message)

    async def _exchange(
        self, message: dns.message.Message, what: str, deadline: Deadline, *, servfail: bool = False
    ) -> dns.message.Message:
        """Send a signed message and return the answer, whatever its rcode, SERVFAIL only where that is wanted."""
        return await while_unavailable(
            lambda: self._exchange_once(message, what, deadline, servfail=servfail),
            deadline,
            self._rng,
        )

    async def _exchange_once(
        self, message: dns.message.Message, what: str, deadline: Deadline, *, servfail: bool
    ) -> dns.message.Message:
        server = self._settings.server
        seconds = min(self._settings.timeout, deadline.left).total_seconds()
        try:
            with dns_span(str(server)):
                async with asyncio.timeout(seconds):
                    address = (await addresses_of(server))[0]
                    answer = await dns.asyncquery.tcp(message, address, timeout=seconds, port=server.port)
        except dns.tsig.PeerError as error:
            why = type(error).__name__.removeprefix("Peer")
            message_text = f"the DNS server {server} doesn't accept the TSIG key ({why}): check its name and secret"
            if isinstance(error, dns.tsig.PeerBadTime):
                message_text = f"the clocks of this host and of the DNS server {server} differ too much (BADTIME)"
            raise RefusalError(Reason.DNS_REJECTED, message_text) from error
        except (NoDnsAnswerError, TimeoutError, *MALFORMED) as error:
            # An answer without the server's signature ends here too, success or not: dnspython demands one.
            why = one_line(str(error), 200) or type(error).__name__
            message_text = f"the DNS server {server} did not {what}: {why}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message_text) from error
        if answer.rcode() == dns.rcode.SERVFAIL and not servfail:
            raise RefusalError(Reason.DNS_UNAVAILABLE, f"the DNS server {server} did not {what}: SERVFAIL")
        return answer


def _soa_query(name: dns.name.Name, key: _Key) -> dns.message.QueryMessage:
    query = dns.message.make_query(name, dns.rdatatype.SOA)
    query.flags &= ~dns.flags.RD
    query.use_tsig(key.keyring, key.name, algorithm=key.algorithm)
    return query


def _txt(value: str) -> dns.rdtypes.ANY.TXT.TXT:
    """A TXT record's data, in strings of at most 255 bytes (RFC 1035 3.3.14)."""
    content = value.encode()
    strings = [content[start : start + 255] for start in range(0, len(content), 255)]
    return dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, dns.rdatatype.TXT, strings)
