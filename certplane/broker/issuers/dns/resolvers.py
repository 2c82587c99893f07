"""The recursive servers: those of the configuration, else those of the system.

They are asked as dnspython's stub resolver asks, by the system's options too (`rotate`, `timeout`, `edns0`): one after
the other, from the start again after a pause, until one answers or the time is up. One that answers with an error or
nonsense isn't asked again; one that says nothing is, and so is one where nothing listens at the moment.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.asking import ask
from certplane.broker.issuers.dns.dns_messages import MALFORMED, Answer, NoDnsAnswerError, SilentServerError
from certplane.broker.issuers.dns.name_servers import Kept, NameServer, Turns, servers_at
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock

LOOKUP_TIMEOUT = timedelta(seconds=10)
_ONE_TRY = timedelta(seconds=2)
_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=100), timedelta(seconds=2)
"""Before all that may still answer are asked again; doubled each time."""
_ASKED_AT_ONCE = 128
"""Questions under way, each with a socket. A resolver that has to look further takes its time for each."""


@dataclass(frozen=True, slots=True)
class _Manner:
    """Whom to ask, and how: what resolv.conf says."""

    servers: tuple[HostPort, ...]
    one_try: timedelta = _ONE_TRY
    edns: bool = False
    rotate: bool = False


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
        self._manner = _manner(configured, key) if (configured or needed) and not self._named else None
        self._addresses = Kept[list[NameServer]](clock)
        self._turns = Turns(_ASKED_AT_ONCE)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._named) or self._manner is not None

    async def servers(self) -> list[NameServer]:
        """All of them; one whose name has no address now is there without any."""
        if self._named:
            kept = self._addresses.fresh(dns.name.empty)
            return kept or await self._addresses.find(dns.name.empty, lambda: servers_at(self._named))
        if self._manner is None:
            return []
        return [NameServer("resolver", (server.host,), server.port) for server in self._manner.servers]

    async def resolve(self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline) -> Answer | None:
        """A resolver's answer, CNAMEs followed; None for NXDOMAIN.

        Raises:
            NoDnsAnswerError: there is none (SERVFAIL too), or no resolver to ask.
        """
        manner = self._manner or await self._manner_now()
        try:
            answer = await self._in_turn(manner, name, kind, deadline)
        except NoDnsAnswerError as error:
            what = f"{dns.rdatatype.to_text(kind)} of {name.to_text(omit_final_dot=True)}"
            raise NoDnsAnswerError(f"{what} can't be looked up ({error})") from error
        return None if answer.rcode == dns.rcode.NXDOMAIN else answer

    async def _in_turn(
        self, manner: _Manner, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> Answer:
        await self._turns.take(deadline, "the resolver")
        try:
            return await _resolve(manner, name, kind, deadline.earlier(LOOKUP_TIMEOUT))
        finally:
            self._turns.give_back()

    async def _manner_now(self) -> _Manner:
        if not self._named:
            raise NoDnsAnswerError("no resolver is configured beside the authoritative servers")
        servers = await self.servers()
        known = tuple(HostPort(address, server.port) for server in servers for address in server.addresses)
        if not known:
            raise NoDnsAnswerError("; ".join(server.trouble for server in servers[:3]))
        return _Manner(known)


async def _resolve(manner: _Manner, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline) -> Answer:
    """The first answer that is one.

    Raises:
        NoDnsAnswerError: with what each server said last.
    """
    servers = list(manner.servers)
    if manner.rotate:
        random.shuffle(servers)
    said: dict[HostPort, str] = {}
    pause = _PAUSE
    while True:
        for server in tuple(servers):
            if not deadline.left:
                break
            try:
                return await _answer_of(server, manner, name, kind, deadline)
            except NoDnsAnswerError as error:
                said[server] = str(error)
                if not isinstance(error, SilentServerError):
                    servers.remove(server)
        if not servers or not await deadline.sleep(pause):
            why = "; ".join(f"{server.host} {reason}" for server, reason in list(said.items())[:3])
            raise NoDnsAnswerError(why or "no time is left")
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _answer_of(
    server: HostPort, manner: _Manner, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
) -> Answer:
    timeout = min(manner.one_try, deadline.left)
    answer = await ask(name, kind, server.host, server.port, timeout, recursive=True, edns=manner.edns)
    if not answer.usable:
        raise NoDnsAnswerError(f"answers {answer.rcode_text}")
    if answer.texts is None:
        message = answer.message
        assert isinstance(message, dns.message.QueryMessage)
        try:
            message.resolve_chaining()
        except MALFORMED as error:
            raise NoDnsAnswerError(f"answers nonsense ({type(error).__name__})") from error
    return answer


def _is_address(server: HostPort) -> bool:
    try:
        ipaddress.ip_address(server.host)
    except ValueError:
        return False
    return True


def _manner(configured: Sequence[HostPort], key: str) -> _Manner:
    try:
        if configured:
            return _Manner(tuple(HostPort(str(ipaddress.ip_address(one.host)), one.port) for one in configured))
        system = dns.resolver.Resolver()
        servers = tuple(HostPort(str(address), system.port) for address in system.nameservers)
        return _Manner(servers, timedelta(seconds=system.timeout), system.edns >= 0, system.rotate)
    except (dns.resolver.NoResolverConfiguration, ValueError) as error:
        problem = ConfigurationProblem(
            "", None, key, "names no resolver that can be used", "write IP addresses of resolvers"
        )
        raise ConfigurationError([problem]) from error
