"""Name servers, asked one question at a time, each at one address that answers: not every host has IPv6.

A server has few questions at a time to answer: when hundreds of orders look at once, it is spared, and so is the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

import dns.name
import dns.rdatatype

from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.asking import addresses_of, ask
from certplane.broker.issuers.dns.dns_messages import Answer, NoDnsAnswerError
from certplane.config.values import HostPort
from certplane.runtime.clock import Clock

T = TypeVar("T")

_ASK_TIMEOUT = timedelta(seconds=3)
_ASKED_AT_ONCE = 16
"""Questions under way to one server: 160 a second at a tenth of a second each."""
_FRESH = timedelta(minutes=1)
_MOST_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class NameServer:
    """A name server: its name, where it can be asked, and why some or all of its addresses aren't known."""

    name: str
    addresses: tuple[str, ...]
    port: int
    trouble: str = ""


class NameServers:
    """Asks them. Safe for concurrent use on one loop."""

    def __init__(self) -> None:
        """Nothing is known of any yet."""
        self._reachable: dict[NameServer, str] = {}
        self._asking: dict[NameServer, Turns] = {}

    async def ask(
        self,
        server: NameServer,
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        deadline: Deadline,
        *,
        recursive: bool = False,
    ) -> tuple[str, Answer]:
        """Ask one reachable address of `server`; returns that address and the answer, whatever its rcode.

        Raises:
            NoDnsAnswerError: none of its addresses answers, with each one's reason.
        """
        if len(self._asking) >= _MOST_KEPT:
            self._asking.clear()  # who waits still has the old one
        turn = self._asking.get(server)
        if turn is None:
            turn = self._asking[server] = Turns(_ASKED_AT_ONCE)
        await turn.take(deadline, server.name)
        try:
            return await self._ask_in_turn(server, name, kind, deadline, recursive=recursive)
        finally:
            turn.give_back()

    async def ask_first(
        self, servers: Sequence[NameServer], name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline
    ) -> tuple[Answer, NameServer]:
        """The answer of the first server that gives one; those that answered before are asked before the others.

        Raises:
            NoDnsAnswerError: none answers NOERROR or NXDOMAIN.
        """
        failures: list[str] = []
        for server in sorted(servers, key=lambda server: server not in self._reachable):
            try:
                address, answer = await self.ask(server, name, kind, deadline)
            except NoDnsAnswerError as error:
                failures.append(str(error))
                continue
            if answer.usable:
                return answer, server
            failures.append(f"{server.name} ({address}) answers {answer.rcode_text}")
        raise NoDnsAnswerError("; ".join(failures[:3]) or "the zone has no name servers")

    async def _ask_in_turn(
        self,
        server: NameServer,
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        deadline: Deadline,
        *,
        recursive: bool,
    ) -> tuple[str, Answer]:
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


class Turns:
    """Places for questions under way to one server."""

    def __init__(self, places: int) -> None:
        """All are free."""
        self._free = asyncio.Semaphore(places)

    async def take(self, deadline: Deadline, server: str) -> None:
        """Take one, to be given back.

        Raises:
            NoDnsAnswerError: none is free before the deadline.
        """
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        try:
            async with asyncio.timeout(deadline.left.total_seconds()):
                await self._free.acquire()
        except TimeoutError as error:
            raise NoDnsAnswerError(f"{server} is slow: earlier queries to it took all the time") from error

    def give_back(self) -> None:
        """Whoever waits first gets it."""
        self._free.release()


class Kept(Generic[T]):
    """What was found out about names, kept for a minute from when it was asked for."""

    def __init__(self, clock: Clock) -> None:
        """`clock` says how old an entry is."""
        self._clock = clock
        self._entries: dict[dns.name.Name, tuple[float, T]] = {}
        self._asking: dict[dns.name.Name, asyncio.Future[T | None]] = {}

    def fresh(self, name: dns.name.Name) -> T | None:
        """What is kept of `name`."""
        entry = self._entries.get(name)
        if entry is None or self._clock.monotonic() - entry[0] >= _FRESH.total_seconds():
            return None
        return entry[1]

    async def find(self, name: dns.name.Name, find: Callable[[], Awaitable[T]]) -> T:
        """What `find` finds, to be kept."""
        now = self._clock.monotonic()
        found = await find()
        if len(self._entries) >= _MOST_KEPT:
            self._entries.clear()
        if not _incomplete(found):  # a server that is missing for a moment isn't left out for a minute
            self._entries[name] = (now, found)
        return found

    async def get(self, name: dns.name.Name, find: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """What is kept of `name`, else what somebody else is just finding, else what `find` finds.

        Hundreds of orders that begin together would else ask for the same hundreds of times. Where somebody else fails,
        or stops, everybody finds it out alone: another's deadline is none of theirs.

        Raises:
            NoDnsAnswerError: somebody else takes longer than the deadline; and what `find` raises.
        """
        if (kept := self.fresh(name)) is not None:
            return kept
        if (other := self._asking.get(name)) is not None:
            try:
                async with asyncio.timeout(deadline.left.total_seconds()):
                    found = await asyncio.shield(other)
            except TimeoutError as error:
                what = name.to_text(omit_final_dot=True)
                raise NoDnsAnswerError(f"{what} can't be looked up: the time is up") from error
            return found if found is not None else await self.find(name, find)
        mine = self._asking[name] = asyncio.get_running_loop().create_future()
        found = None
        try:
            found = await self.find(name, find)
        finally:
            del self._asking[name]
            mine.set_result(found)
        return found


def _incomplete(found: object) -> bool:
    """Whether a list of servers lacks addresses of one that may be there the next time."""
    return isinstance(found, list) and any(server.trouble and not server.addresses for server in found)


async def servers_at(places: Sequence[HostPort]) -> list[NameServer]:
    """Configured servers with their addresses; one that has none is there with what is wrong."""

    async def find(one: HostPort) -> NameServer:
        try:
            return NameServer(str(one), tuple(await addresses_of(one)), one.port)
        except NoDnsAnswerError as error:
            return NameServer(str(one), (), one.port, str(error))

    return await all_of(find(one) for one in places)
