"""The recursive servers: those of the configuration, else those of the system."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import timedelta

import dns.asyncresolver
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import MALFORMED, NoDnsAnswerError
from certplane.broker.issuers.dns.name_servers import Kept, NameServer, servers_at
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock

LOOKUP_TIMEOUT = timedelta(seconds=10)


class Resolvers:
    """Asks resolvers. False where there are none."""

    def __init__(
        self, configured: Sequence[HostPort], clock: Clock, *, key: str, named: bool = False, needed: bool = True
    ) -> None:
        """Nothing is sent.

        Args:
            configured: who is asked; those of the system when empty.
            clock: how long the addresses of named ones are kept.
            key: the configuration key that `configured` come from.
            named: `configured` may be host names, which the system looks up at use.
            needed: without `configured` those of the system are taken.

        Raises:
            ConfigurationError: the system has no resolver, or one of `configured` isn't an address.
        """
        self._named = tuple(configured) if named and not all(map(_is_address, configured)) else ()
        self._resolver = _resolver(configured, key) if (configured or needed) and not self._named else None
        self._addresses = Kept[list[NameServer]](clock)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._named) or self._resolver is not None

    async def servers(self) -> list[NameServer]:
        """All of them; one whose name has no address now is there without any."""
        if self._named:
            return await self._addresses.get(dns.name.empty, lambda: servers_at(self._named))
        if self._resolver is None:
            return []
        return [
            NameServer("resolver", (server.address,), server.port)
            if isinstance(server, dns.nameserver.Do53Nameserver)
            else NameServer("resolver", (str(server),), 53)
            for server in self._resolver.nameservers
        ]

    async def resolve(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> dns.message.Message | None:
        """A resolver's answer, CNAMEs followed; None for NXDOMAIN.

        Raises:
            NoDnsAnswerError: there is none (SERVFAIL too), or no resolver to ask.
        """
        resolver = await self._resolver_now()
        lifetime = min(LOOKUP_TIMEOUT, deadline.left).total_seconds()
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
        servers = await self.servers()
        known = [HostPort(address, server.port) for server in servers for address in server.addresses]
        if not known:
            raise NoDnsAnswerError("; ".join(server.trouble for server in servers[:3]))
        return _resolver(known, "")


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
        problem = ConfigurationProblem(
            "", None, key, "names no resolver that can be used", "write IP addresses of resolvers"
        )
        raise ConfigurationError([problem]) from error
    return resolver
