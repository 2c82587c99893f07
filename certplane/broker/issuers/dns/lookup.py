"""What the DNS says: which zone holds a name, which servers have it, and what these answer.

Zones are found by asking for SOA records upwards, at the resolvers. The name of a record that isn't written yet is
never asked for there: a resolver that is told too early that a name doesn't exist remembers it for as long as the
zone's SOA says. So the walk begins at the name's parent, and the zone's own servers say by a referral if the name is
in a zone below. With configured `servers` (split DNS) those are asked for everything, and no resolver.

One broken part doesn't hide the others: a name whose SOA can't be looked up (load balancers that know A alone) is
passed over, and the servers of the zone above say whether it is in theirs; a server is known by its A records when its
AAAA records can't be looked up. Answers of the walk are kept for a minute.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta

import dns.name
import dns.rdatatype

from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import Answer, NoDnsAnswerError, alias_in, referral_in
from certplane.broker.issuers.dns.name_servers import Kept, NameServer, NameServers, servers_at
from certplane.broker.issuers.dns.resolvers import LOOKUP_TIMEOUT, Resolvers
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock, SystemClock

_MOST_CUTS = 8
"""Zones below one another that a name is followed into."""
_MOST_PASSED = 3
"""Names whose SOA can't be looked up that are passed over on the way up: more is a resolver that is out of order."""
_AFTER_FAILURE = timedelta(seconds=3)
"""For each look-up of a walk after one that failed."""


class DnsLookup:
    """Asks resolvers and authoritative servers. Safe for concurrent use on one loop.

    `resolvers` and `name_servers` are for questions of one's own; `port` is where the servers of an NS set listen.
    """

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
        clock = clock or SystemClock()
        self._configured, self.port = tuple(servers), port
        self.name_servers = NameServers()
        self.resolvers = Resolvers(resolvers, clock, key=key, named=named_resolvers, needed=not servers)
        self._apexes = Kept[bool](clock)
        self._passed = Kept[dns.name.Name](clock)
        """Zones of names above which something had to be passed over."""
        self._servers = Kept[list[NameServer]](clock)

    @property
    def has_servers(self) -> bool:
        """Whether authoritative servers are configured, which are asked instead of those of the DNS."""
        return bool(self._configured)

    async def zone_of(self, name: dns.name.Name, deadline: Deadline) -> dns.name.Name:
        """The nearest zone at or above `name`: the first name upwards with an SOA (RFC 1034 4.2.1).

        Raises:
            RefusalError: DNS_REJECTED: nothing above it is a zone.
            NoDnsAnswerError: it can't be told now.
        """
        return self._passed.fresh(name) or await self._walk(name, deadline)

    async def servers_of(self, zone: dns.name.Name, deadline: Deadline) -> list[NameServer]:
        """The authoritative servers of a zone, by name: its NS set, or those that are configured.

        Raises:
            RefusalError: DNS_REJECTED: the zone doesn't exist in the DNS.
            NoDnsAnswerError: it can't be told now.
        """
        if self._configured:
            return await self._servers.get(dns.name.root, lambda: servers_at(self._configured), deadline)
        return await self._servers.get(zone, lambda: self._name_servers(zone, deadline), deadline)

    async def locate(self, name: dns.name.Name, deadline: Deadline) -> tuple[dns.name.Name, list[NameServer]]:
        """The zone that holds `name` and its servers, found without asking a resolver for it. Raises as `look`."""
        zone, _, servers = await self._look(name, dns.rdatatype.CNAME, deadline)
        return zone, servers

    async def look(self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline) -> Answer:
        """What the first authoritative server that can be asked answers; NOERROR or NXDOMAIN.

        Raises:
            RefusalError: DNS_REJECTED: the name is in no zone.
            NoDnsAnswerError: no server answers in a usable way.
        """
        _, answer, _ = await self._look(name, kind, deadline)
        return answer

    async def _walk(self, name: dns.name.Name, deadline: Deadline) -> dns.name.Name:
        candidate = name
        failures: list[NoDnsAnswerError] = []
        while candidate != dns.name.root and len(failures) <= _MOST_PASSED:
            try:
                found = await self._is_apex(candidate, deadline.earlier(_AFTER_FAILURE) if failures else deadline)
            except NoDnsAnswerError as error:
                failures.append(error)
                found = False
            if found and failures:
                by_servers = functools.partial(self._zone_by_servers, candidate, name, deadline, failures)
                return await self._passed.find(name, by_servers)
            if found:
                return candidate
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
        """The zone of `name` below the apex `above`, where names between were passed over: its servers know."""
        try:
            answer, _ = await self.name_servers.ask_first(
                await self.servers_of(above, deadline), name, dns.rdatatype.CNAME, deadline.earlier(LOOKUP_TIMEOUT)
            )
        except (NoDnsAnswerError, RefusalError) as error:
            raise failures[0] from error
        if (cut := referral_in(answer, name)) is not None and cut.is_subdomain(above) and cut != above:
            return cut
        if not answer.authoritative:
            raise failures[0]
        if alias_in(answer, name):
            return above
        # A server that has the zone above and the one below says by the SOA beside its answer which one that is from.
        owners = [rrset.name for rrset in answer.authority if rrset.rdtype == dns.rdatatype.SOA]
        return next((owner for owner in owners if name.is_subdomain(owner) and owner.is_subdomain(above)), above)

    async def _is_apex(self, name: dns.name.Name, deadline: Deadline) -> bool:
        return await self._apexes.get(name, lambda: self._has_soa(name, deadline), deadline)

    async def _has_soa(self, name: dns.name.Name, deadline: Deadline) -> bool:
        answer = await self._soa(name, deadline)
        # A name that answers with a CNAME is no zone's apex, whatever the CNAME leads to.
        if answer is None or alias_in(answer, name):
            return False
        return any(rrset.rdtype == dns.rdatatype.SOA and rrset.name == name for rrset in answer.answer)

    async def _soa(self, name: dns.name.Name, deadline: Deadline) -> Answer | None:
        if not self._configured:
            return await self.resolvers.resolve(name, dns.rdatatype.SOA, deadline)
        answer, _ = await self.name_servers.ask_first(
            await self.servers_of(name, deadline), name, dns.rdatatype.SOA, deadline
        )
        return answer if answer.authoritative else None

    async def _look(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> tuple[dns.name.Name, Answer, list[NameServer]]:
        zone = dns.name.root if self._configured else await self.zone_of(name.parent(), deadline)
        for _ in range(_MOST_CUTS):
            servers = await self.servers_of(zone, deadline)
            answer, server = await self.name_servers.ask_first(servers, name, kind, deadline)
            cut = referral_in(answer, name)
            if cut is None:
                if not answer.authoritative:
                    text = name.to_text(omit_final_dot=True)
                    raise NoDnsAnswerError(f"{server.name} isn't authoritative for {text}")
                return zone, answer, servers
            if self._configured or not cut.is_subdomain(zone) or cut == zone:
                below = cut.to_text(omit_final_dot=True)
                raise NoDnsAnswerError(f"{server.name} isn't authoritative: it refers to the servers of {below}")
            zone = cut
        raise NoDnsAnswerError(f"{name.to_text(omit_final_dot=True)} is below too many zones")

    async def _name_servers(self, zone: dns.name.Name, deadline: Deadline) -> list[NameServer]:
        answer = await self.resolvers.resolve(zone, dns.rdatatype.NS, deadline)
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
                answer = await self.resolvers.resolve(target, kind, deadline)
            except NoDnsAnswerError as error:
                return [], str(error)
            rrsets = () if answer is None else answer.answer
            return [str(record.address) for rrset in rrsets if rrset.rdtype == kind for record in rrset], ""

        found = await all_of(look_up(kind) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA))
        addresses = tuple(address for addresses, _ in found for address in addresses)
        trouble = "; ".join(why for _, why in found if why)
        return NameServer(target.to_text(omit_final_dot=True), addresses, self.port, trouble)
