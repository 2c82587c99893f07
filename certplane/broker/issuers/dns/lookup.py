"""What the DNS says: which zone holds a name, which servers have it, and what these answer.

Zones are found by asking for SOA records upwards, at the resolvers. The name of a record that isn't written yet is
never asked for there: a resolver that is told too early that a name doesn't exist remembers it for as long as the
zone's SOA says. So the walk begins at the name's parent, and the zone's own servers say by a referral if the name is
in a zone below. With configured `servers` (split DNS) those are asked for everything, and no resolver.

One broken part doesn't hide the others: a name whose SOA can't be looked up (load balancers that know A alone) is
passed over, and the servers of the zone above say whether it is in theirs; a server is known by its A records when its
AAAA records can't be looked up. One reachable address of each server is asked: not every host has IPv6.
Answers of the walk are kept for a minute. A server has few questions at a time to answer: when hundreds of orders look
at once, it is spared, and so is the loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import dns.asyncresolver
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver

from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import (
    MALFORMED,
    NoDnsAnswerError,
    addresses_of,
    alias_in,
    ask,
    referral_in,
)
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.clock import Clock, SystemClock

T = TypeVar("T")

_ASK_TIMEOUT = timedelta(seconds=3)
_ASKED_AT_ONCE = 16
"""Questions under way to one server: 160 a second at a tenth of a second each."""
_LOOKUP_TIMEOUT = timedelta(seconds=10)
_FRESH = timedelta(minutes=1)
_MOST_KEPT = 10_000
_MOST_CUTS = 8
"""Zones below one another that a name is followed into."""
_MOST_PASSED = 3
"""Names whose SOA can't be looked up that are passed over on the way up: more is a resolver that is out of order."""
_AFTER_FAILURE = timedelta(seconds=3)
"""For each look-up of a walk after one that failed."""


@dataclass(frozen=True, slots=True)
class NameServer:
    """A name server: its name, where it can be asked, and why some or all of its addresses aren't known."""

    name: str
    addresses: tuple[str, ...]
    port: int
    trouble: str = ""


class DnsLookup:
    """Asks resolvers and authoritative servers. Safe for concurrent use on one loop."""

    def __init__(
        self,
        *,
        resolvers: Sequence[HostPort] = (),
        servers: Sequence[HostPort] = (),
        port: int = 53,
        clock: Clock | None = None,
        key: str = "dns.resolvers",
        named_resolvers: bool = False,
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            resolvers: recursive servers; those of the system when empty.
            servers: authoritative servers to ask instead of a zone's NS set.
            port: where the servers of an NS set listen; another one only in a laboratory.
            clock: how long answers are kept.
            key: the configuration key that `resolvers` come from.
            named_resolvers: `resolvers` may be host names, which the system looks up at use.

        Raises:
            ConfigurationError: the system has no resolver, or one of `resolvers` isn't an address.
        """
        self._configured, self._port, self._clock = tuple(servers), port, clock or SystemClock()
        self._named = tuple(resolvers) if named_resolvers and not all(map(_is_address, resolvers)) else ()
        self._resolver = _resolver(resolvers, key) if (resolvers or not servers) and not self._named else None
        self._zones: dict[dns.name.Name, tuple[float, dns.name.Name]] = {}
        self._servers: dict[dns.name.Name, tuple[float, list[NameServer]]] = {}
        self._reachable: dict[NameServer, str] = {}
        self._asking: dict[NameServer, asyncio.Semaphore] = {}

    @property
    def has_resolvers(self) -> bool:
        """Whether there are recursive servers to ask."""
        return bool(self._named) or self._resolver is not None

    async def resolvers(self) -> list[NameServer]:
        """The recursive servers; empty if there are none. One whose name has no address now is there without any."""
        if self._named:
            return await self._kept(self._servers, dns.name.empty, lambda: _found(self._named))
        if self._resolver is None:
            return []
        return [
            NameServer("resolver", (server.address,), server.port)
            if isinstance(server, dns.nameserver.Do53Nameserver)
            else NameServer("resolver", (str(server),), 53)
            for server in self._resolver.nameservers
        ]

    async def zone_of(self, name: dns.name.Name, deadline: Deadline) -> dns.name.Name:
        """The nearest zone at or above `name`: the first name upwards with an SOA (RFC 1034 4.2.1).

        Raises:
            RefusalError: DNS_REJECTED: nothing above it is a zone.
            NoDnsAnswerError: it can't be told now.
        """
        return await self._kept(self._zones, name, lambda: self._walk(name, deadline))

    async def servers_of(self, zone: dns.name.Name, deadline: Deadline) -> list[NameServer]:
        """The authoritative servers of a zone, by name: its NS set, or those that are configured.

        Raises:
            RefusalError: DNS_REJECTED: the zone doesn't exist in the DNS.
            NoDnsAnswerError: it can't be told now.
        """
        if self._configured:
            return await self._kept(self._servers, dns.name.root, lambda: _found(self._configured))
        return await self._kept(self._servers, zone, lambda: self._name_servers(zone, deadline))

    async def locate(self, name: dns.name.Name, deadline: Deadline) -> tuple[dns.name.Name, list[NameServer]]:
        """The zone that holds `name` and its servers, found without asking a resolver for it. Raises as `look`."""
        zone, _, servers = await self._look(name, dns.rdatatype.CNAME, deadline)
        return zone, servers

    async def look(self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline) -> dns.message.Message:
        """What the first authoritative server that can be asked answers; NOERROR or NXDOMAIN.

        Raises:
            RefusalError: DNS_REJECTED: the name is in no zone.
            NoDnsAnswerError: no server answers in a usable way.
        """
        _, answer, _ = await self._look(name, kind, deadline)
        return answer

    async def alias_of(self, name: dns.name.Name, deadline: Deadline) -> str:
        """Where a CNAME at `name` leads, without the final dot; empty if there is none. Raises as `look`."""
        answer = await self.look(name, dns.rdatatype.CNAME, deadline)
        return alias_in(answer, name).rstrip(".").lower()

    async def ask_server(
        self,
        server: NameServer,
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        deadline: Deadline,
        *,
        recursive: bool = False,
    ) -> tuple[str, dns.message.Message]:
        """Ask one reachable address of `server`; returns that address and the answer, whatever its rcode.

        Raises:
            NoDnsAnswerError: none of its addresses answers, with each one's reason.
        """
        if len(self._asking) >= _MOST_KEPT:
            self._asking.clear()  # who waits still has the old one
        turn = self._asking.setdefault(server, asyncio.Semaphore(_ASKED_AT_ONCE))
        try:
            async with asyncio.timeout(deadline.left.total_seconds()):
                await turn.acquire()
        except TimeoutError as error:
            raise NoDnsAnswerError(f"{server.name} is slow: its turn to be asked did not come in time") from error
        try:
            return await self._ask_in_turn(server, name, kind, deadline, recursive=recursive)
        finally:
            turn.release()

    async def _ask_in_turn(
        self,
        server: NameServer,
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        deadline: Deadline,
        *,
        recursive: bool,
    ) -> tuple[str, dns.message.Message]:
        known = self._reachable.get(server)
        addresses = sorted(server.addresses, key=lambda address: address != known)
        failures: list[str] = []
        for address in addresses:
            timeout = min(_ASK_TIMEOUT, deadline.left)
            try:
                answer = await ask(name, kind, address, server.port, timeout, recursive=recursive)
            except NoDnsAnswerError as error:
                failures.append(f"{address}: {error}")
                continue
            self._reachable[server] = address
            return address, answer
        reason = "; ".join(failures) or server.trouble or "it has no address"
        raise NoDnsAnswerError(f"{server.name} can't be asked ({reason})")

    async def resolve(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> dns.message.Message | None:
        """A resolver's answer, CNAMEs followed; None for NXDOMAIN.

        Raises:
            NoDnsAnswerError: there is none (SERVFAIL too), or no resolver to ask.
        """
        resolver = await self._resolver_now()
        lifetime = min(_LOOKUP_TIMEOUT, deadline.left).total_seconds()
        try:
            answer = await resolver.resolve(name, kind, lifetime=lifetime, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            return None
        except MALFORMED as error:
            what = f"{dns.rdatatype.to_text(kind)} of {name.to_text(omit_final_dot=True)}"
            raise NoDnsAnswerError(f"{what} can't be looked up ({type(error).__name__})") from error
        return answer.response

    async def _resolver_now(self) -> dns.asyncresolver.Resolver:
        if self._resolver is not None:
            return self._resolver
        if not self._named:
            raise NoDnsAnswerError("no resolver is configured beside the authoritative servers")
        servers = await self.resolvers()
        known = [HostPort(address, server.port) for server in servers for address in server.addresses]
        if not known:
            raise NoDnsAnswerError("; ".join(server.trouble for server in servers[:3]))
        return _resolver(known, "")

    async def _walk(self, name: dns.name.Name, deadline: Deadline) -> dns.name.Name:
        candidate = name
        failures: list[NoDnsAnswerError] = []
        while candidate != dns.name.root and len(failures) <= _MOST_PASSED:
            try:
                answer = await self._soa(candidate, deadline.earlier(_AFTER_FAILURE) if failures else deadline)
            except NoDnsAnswerError as error:
                failures.append(error)
                answer = None
            # A name that answers with a CNAME is no zone's apex, whatever the CNAME leads to.
            if answer is not None and not alias_in(answer, candidate):
                for rrset in answer.answer:
                    if rrset.rdtype == dns.rdatatype.SOA and rrset.name == candidate:
                        return await self._zone_by_servers(candidate, name, deadline, failures)
            candidate = candidate.parent()
        if failures:
            raise failures[0]
        text = name.to_text(omit_final_dot=True)
        message = (
            f"{text} is in no zone of the DNS: neither it nor a name above has an SOA record; register it, or correct "
            f"the name; where the resolver shows no SOA records, name dns.authoritative_servers or set "
            f"dns.propagation.mode: recursive"
        )
        raise RefusalError(Reason.DNS_REJECTED, message)

    async def _zone_by_servers(
        self, above: dns.name.Name, name: dns.name.Name, deadline: Deadline, failures: Sequence[NoDnsAnswerError]
    ) -> dns.name.Name:
        """The zone of `name` below the apex `above`, where the names between were passed over: its servers know.

        Without `failures` nothing was passed over, and it is `above`.
        """
        if not failures:
            return above
        try:
            answer, _ = await self._first(
                await self.servers_of(above, deadline), name, dns.rdatatype.CNAME, deadline.earlier(_LOOKUP_TIMEOUT)
            )
        except (NoDnsAnswerError, RefusalError) as error:
            raise failures[0] from error
        if (cut := referral_in(answer, name)) is not None and cut.is_subdomain(above) and cut != above:
            return cut
        if not answer.flags & dns.flags.AA:
            raise failures[0]
        if alias_in(answer, name):
            return above
        # A server that has the zone above and the one below says by the SOA beside its answer which one that is from.
        owners = [rrset.name for rrset in answer.authority if rrset.rdtype == dns.rdatatype.SOA]
        return next((owner for owner in owners if name.is_subdomain(owner) and owner.is_subdomain(above)), above)

    async def _soa(self, name: dns.name.Name, deadline: Deadline) -> dns.message.Message | None:
        if not self._configured:
            return await self.resolve(name, dns.rdatatype.SOA, deadline)
        answer, _ = await self._first(await self.servers_of(name, deadline), name, dns.rdatatype.SOA, deadline)
        return answer if answer.flags & dns.flags.AA else None

    async def _look(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> tuple[dns.name.Name, dns.message.Message, list[NameServer]]:
        zone = dns.name.root if self._configured else await self.zone_of(name.parent(), deadline)
        for _ in range(_MOST_CUTS):
            servers = await self.servers_of(zone, deadline)
            answer, server = await self._first(servers, name, kind, deadline)
            cut = referral_in(answer, name)
            if cut is None:
                if not answer.flags & dns.flags.AA:
                    text = name.to_text(omit_final_dot=True)
                    raise NoDnsAnswerError(f"{server.name} isn't authoritative for {text}")
                return zone, answer, servers
            if self._configured or not cut.is_subdomain(zone) or cut == zone:
                below = cut.to_text(omit_final_dot=True)
                raise NoDnsAnswerError(f"{server.name} isn't authoritative: it refers to the servers of {below}")
            zone = cut
        raise NoDnsAnswerError(f"{name.to_text(omit_final_dot=True)} is below too many zones")

    async def _first(
        self, servers: Sequence[NameServer], name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> tuple[dns.message.Message, NameServer]:
        """The answer of the first server that gives one; those that answered before are asked before the others."""
        failures: list[str] = []
        for server in sorted(servers, key=lambda server: server not in self._reachable):
            try:
                address, answer = await self.ask_server(server, name, kind, deadline)
            except NoDnsAnswerError as error:
                failures.append(str(error))
                continue
            if answer.rcode() in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
                return answer, server
            failures.append(f"{server.name} ({address}) answers {dns.rcode.to_text(answer.rcode())}")
        raise NoDnsAnswerError("; ".join(failures[:3]) or "the zone has no name servers")

    async def _name_servers(self, zone: dns.name.Name, deadline: Deadline) -> list[NameServer]:
        answer = await self.resolve(zone, dns.rdatatype.NS, deadline)
        found = [] if answer is None else [rrset for rrset in answer.answer if rrset.rdtype == dns.rdatatype.NS]
        if not found:
            message = f"the zone {zone.to_text(omit_final_dot=True)} has no name servers in the DNS"
            raise RefusalError(Reason.DNS_REJECTED, message)
        targets = sorted({record.target for rrset in found for record in rrset}, key=str)
        return await all_of(self._server(target, deadline) for target in targets)

    async def _server(self, target: dns.name.Name, deadline: Deadline) -> NameServer:
        """A server of an NS set, by whichever of its addresses can be looked up."""

        async def look_up(kind: dns.rdatatype.RdataType) -> tuple[list[str], str]:
            try:
                answer = await self.resolve(target, kind, deadline)
            except NoDnsAnswerError as error:
                return [], str(error)
            rrsets = () if answer is None else answer.answer
            return [str(record.address) for rrset in rrsets if rrset.rdtype == kind for record in rrset], ""

        found = await all_of(look_up(kind) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA))
        addresses = tuple(address for addresses, _ in found for address in addresses)
        trouble = "; ".join(why for _, why in found if why)
        return NameServer(target.to_text(omit_final_dot=True), addresses, self._port, trouble)

    async def _kept(
        self,
        kept: dict[dns.name.Name, tuple[float, T]],
        name: dns.name.Name,
        find: Callable[[], Awaitable[T]],
    ) -> T:
        entry = kept.get(name)
        now = self._clock.monotonic()
        if entry is not None and now - entry[0] < _FRESH.total_seconds():
            return entry[1]
        found = await find()
        if len(kept) >= _MOST_KEPT:
            kept.clear()
        if not _incomplete(found):  # a server that is missing for a moment isn't left out for a minute
            kept[name] = (now, found)
        return found


def _incomplete(found: object) -> bool:
    """Whether a list of servers lacks addresses of one that may be there the next time."""
    return isinstance(found, list) and any(server.trouble and not server.addresses for server in found)


async def _found(servers: Sequence[HostPort]) -> list[NameServer]:
    """Configured servers with their addresses; one that has none is there with what is wrong."""

    async def find(one: HostPort) -> NameServer:
        try:
            return NameServer(str(one), tuple(await addresses_of(one)), one.port)
        except NoDnsAnswerError as error:
            return NameServer(str(one), (), one.port, str(error))

    return await all_of(find(one) for one in servers)


def _is_address(server: HostPort) -> bool:
    try:
        ipaddress.ip_address(server.host)
    except ValueError:
        return False
    return True


def _resolver(resolvers: Sequence[HostPort], key: str) -> dns.asyncresolver.Resolver:
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
