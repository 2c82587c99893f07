"""Waiting until every authoritative server of a zone shows the TXT records.

A CA looks from several places and at any of the servers, and a failed validation costs one of five per name and hour
(Let's Encrypt). So a challenge is answered only after all servers have shown all values, and after a settling time if
one is configured. Only authoritative servers are asked, without recursion: a resolver that is asked too early
remembers that a record doesn't exist, for as long as the zone's SOA says.

Which servers: those of `nameservers` if configured (split DNS), else the zone's NS set as the resolver sees it. A
server with several addresses is asked at each; those that don't answer are tolerated as long as one does, since not
every host has IPv6.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import dns.asyncresolver
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from certplane.broker.issuers.answers import printable
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import (
    MALFORMED,
    NoDnsAnswerError,
    addresses_of,
    alias_in,
    ask_authoritative,
    lacking_txt,
    name_of,
)
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError

if TYPE_CHECKING:
    from certplane.broker.model import TxtRecord
    from certplane.config.values import HostPort

__all__ = ["PropagationCheck"]

_ASK_TIMEOUT = timedelta(seconds=3)
_LEAST_ASK = timedelta(milliseconds=250)
"""No look begins with less time than this: it would find nothing out, and hide what the one before found."""
_LOOKUP_TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class _Server:
    """An authoritative server: its name, and where it can be asked."""

    name: str
    addresses: tuple[str, ...]
    port: int


class PropagationCheck:
    """Looks at authoritative servers until they show what was written."""

    def __init__(
        self,
        *,
        timeout: timedelta = timedelta(seconds=120),
        interval: timedelta = timedelta(seconds=2),
        settle: timedelta = timedelta(),
        nameservers: Sequence[HostPort] = (),
        resolvers: Sequence[HostPort] = (),
        port: int = 53,
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            timeout: the longest wait for one set of records, the caller's deadline permitting.
            interval: between looks.
            settle: wait after all servers have shown the records.
            nameservers: authoritative servers to ask instead of the zone's NS set.
            resolvers: recursive servers (addresses) that know the NS set; those of the system when empty.
            port: where the servers of an NS set listen; another one only in a laboratory.

        Raises:
            ConfigurationError: the system has no resolver, or one of `resolvers` isn't an address.
        """
        self._timeout, self._interval, self._settle = timeout, interval, settle
        self._nameservers, self._port = tuple(nameservers), port
        self._resolver = None if nameservers else _resolver(resolvers)

    async def wait(self, records: Sequence[TxtRecord], deadline: Deadline) -> None:
        """Return when every authoritative server of each record's zone shows its value.

        Raises:
            RefusalError: DNS_UNAVAILABLE naming the server that lacked it; DNS_REJECTED when the zone doesn't exist or
                the name is an alias.
        """
        deadline = deadline.earlier(self._timeout)
        values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for record in records:
            values[record.name, record.zone].add(record.value)
        await all_of(self._wait_for(name, zone, frozenset(wanted), deadline) for (name, zone), wanted in values.items())
        if self._settle and not await deadline.sleep(self._settle):
            raise RefusalError(Reason.DNS_UNAVAILABLE, "no time is left to let the TXT records settle")

    async def _wait_for(self, name: str, zone: str, values: frozenset[str], deadline: Deadline) -> None:
        servers: list[_Server] = []
        while True:
            try:
                servers = servers or await self._servers(name, zone, deadline)
                found = await all_of(self._lacking(server, name, values, deadline) for server in servers)
                lacking = next((what for what in found if what), "")
                if not lacking:
                    return
            except NoDnsAnswerError as error:
                lacking = str(error)
            if deadline.left < self._interval + _LEAST_ASK or not await deadline.sleep(self._interval):
                raise RefusalError(Reason.DNS_UNAVAILABLE, f"the TXT record at {name} isn't visible: {lacking}")

    async def _lacking(self, server: _Server, name: str, values: frozenset[str], deadline: Deadline) -> str:
        """Why the server doesn't show the values, with its name; empty if it does, at each address that answers."""
        answers = await all_of(
            self._lacking_at(server, address, name, values, deadline) for address in server.addresses
        )
        answered = [answer for answer in answers if not isinstance(answer, NoDnsAnswerError)]
        if not answered:
            why = "; ".join(f"{address}: {answer}" for address, answer in zip(server.addresses, answers, strict=True))
            return f"{server.name} can't be asked ({why or 'it has no address'})"
        return next((answer for answer in answered if answer), "")

    async def _lacking_at(
        self, server: _Server, address: str, name: str, values: frozenset[str], deadline: Deadline
    ) -> str | NoDnsAnswerError:
        absolute = name_of(name)
        try:
            answer = await ask_authoritative(absolute, address, server.port, min(_ASK_TIMEOUT, deadline.left))
        except NoDnsAnswerError as error:
            return error
        if alias := alias_in(answer, absolute):
            message = f"{name} is an alias (CNAME) of {printable(alias, 260)}, which isn't followed; remove it"
            raise RefusalError(Reason.DNS_REJECTED, message)
        lacking = lacking_txt(answer, absolute, values)
        return f"{server.name} ({address}) {lacking}" if lacking else ""

    async def _servers(self, name: str, zone: str, deadline: Deadline) -> list[_Server]:
        if self._resolver is None:
            return [
                _Server(str(server), tuple(await addresses_of(server)), server.port) for server in self._nameservers
            ]
        return await self._name_servers(self._resolver, name, zone, deadline)

    async def _name_servers(
        self, resolver: dns.asyncresolver.Resolver, name: str, zone: str, deadline: Deadline
    ) -> list[_Server]:
        lifetime = min(_LOOKUP_TIMEOUT, deadline.left).total_seconds()
        try:
            apex = (
                name_of(zone)
                if zone
                else await dns.asyncresolver.zone_for_name(name_of(name), resolver=resolver, lifetime=lifetime)
            )
            answer = await resolver.resolve(apex, dns.rdatatype.NS, lifetime=lifetime)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.NoRootSOA) as error:
            message = f"the zone {zone or 'of ' + name} has no name servers in the DNS"
            raise RefusalError(Reason.DNS_REJECTED, message) from error
        except MALFORMED as error:
            raise NoDnsAnswerError(f"the name servers can't be looked up ({type(error).__name__})") from error
        names = sorted(str(record.target) for record in answer)
        return await all_of(self._server(resolver, target, lifetime) for target in names)

    async def _server(self, resolver: dns.asyncresolver.Resolver, target: str, lifetime: float) -> _Server:
        async def look_up(kind: dns.rdatatype.RdataType) -> list[str]:
            try:
                answer = await resolver.resolve(target, kind, lifetime=lifetime, raise_on_no_answer=False)
            except dns.resolver.NXDOMAIN:
                return []
            except MALFORMED as error:
                raise NoDnsAnswerError(
                    f"the address of {target} can't be looked up ({type(error).__name__})"
                ) from error
            return [str(record.address) for record in answer]

        found = await all_of(look_up(kind) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA))
        return _Server(target.rstrip("."), tuple(address for addresses in found for address in addresses), self._port)


def _resolver(resolvers: Sequence[HostPort]) -> dns.asyncresolver.Resolver:
    key = "issuer.acme.propagation"
    try:
        resolver = dns.asyncresolver.Resolver(configure=not resolvers)
        if resolvers:
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(server.host)), server.port)
                for server in resolvers
            ]
    except (dns.resolver.NoResolverConfiguration, ValueError) as error:
        problem = ConfigurationProblem("", None, key, "no resolver can be used", "name addresses of resolvers")
        raise ConfigurationError([problem]) from error
    return resolver
