"""Waiting until the TXT records can be seen.

A CA looks from several places and at any of the servers, and a failed validation costs one of five per name and hour
(Let's Encrypt). So a challenge is answered only after all servers have shown all values, and after a settling time if
one is configured.

| mode | who is asked |
|---|---|
| authoritative | every authoritative server of the zone, without recursion, at one reachable address each |
| recursive | every resolver; one that was asked too early remembers for as long as the zone's SOA says |
| wait | nobody: the settling time is all |
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import dns.rdatatype

from certplane.broker.issuers.answers import printable
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import (
    NoDnsAnswerError,
    alias_in,
    lacking_txt,
    name_of,
    referral_in,
)
from certplane.errors import Reason, RefusalError

if TYPE_CHECKING:
    from certplane.broker.issuers.dns.lookup import DnsLookup, NameServer
    from certplane.broker.model import TxtRecord

__all__ = ["Mode", "PropagationCheck"]

_LEAST_ASK = timedelta(milliseconds=250)
"""No look begins with less time than this: it would find nothing out, and hide what the one before found."""


_SCATTER = 0.2
"""By how much of the interval names look sooner: hundreds that came with one call aren't all looked at in one turn."""


class Mode(StrEnum):
    """Who is asked; values are those of the configuration."""

    AUTHORITATIVE = "authoritative"
    RECURSIVE = "recursive"
    WAIT = "wait"


class PropagationCheck:
    """Looks at servers until they show what was written."""

    def __init__(
        self,
        lookup: DnsLookup,
        *,
        mode: Mode = Mode.AUTHORITATIVE,
        timeout: timedelta = timedelta(seconds=120),
        interval: timedelta = timedelta(seconds=2),
        settle: timedelta = timedelta(),
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            lookup: which servers there are.
            mode: which of them are asked.
            timeout: the longest wait for one set of records, the caller's deadline permitting.
            interval: between looks.
            settle: wait after all servers have shown the records.
        """
        self._lookup, self.mode = lookup, mode
        self._timeout, self._interval, self._settle = timeout, interval, settle

    async def wait(self, records: Sequence[TxtRecord], deadline: Deadline) -> None:
        """Return when each server that is asked shows every record.

        Raises:
            RefusalError: DNS_UNAVAILABLE naming the server that lacked one, and the record; DNS_REJECTED when the zone
                doesn't exist or the name is an alias.
        """
        if self.mode is not Mode.WAIT:
            await self._wait_for_all(records, deadline.earlier(self._timeout + self._settle))
        if self._settle and not await deadline.sleep(self._settle):
            raise RefusalError(Reason.DNS_UNAVAILABLE, "no time is left to let the TXT records settle")

    async def _wait_for_all(self, records: Sequence[TxtRecord], deadline: Deadline) -> None:
        deadline = deadline.earlier(self._timeout)
        values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for record in records:
            values[record.name, record.zone].add(record.value)
        await all_of(self._wait_for(name, zone, frozenset(wanted), deadline) for (name, zone), wanted in values.items())

    async def _wait_for(self, name: str, zone: str, values: frozenset[str], deadline: Deadline) -> None:
        pause = self._interval * (1 - _SCATTER * zlib.crc32(name.encode()) / 2**32)
        while True:
            try:
                servers = await self._servers(name, zone, deadline)
                found = await all_of(self._lacking(server, name, values, deadline) for server in servers)
                lacking = next((what for what in found if what), "")
                if not lacking:
                    return
            except NoDnsAnswerError as error:
                lacking = str(error)
            if deadline.left < pause + _LEAST_ASK or not await deadline.sleep(pause):
                raise RefusalError(Reason.DNS_UNAVAILABLE, f"the TXT record at {name} isn't visible: {lacking}")

    async def _lacking(self, server: NameServer, name: str, values: frozenset[str], deadline: Deadline) -> str:
        """Why the server doesn't show the values, with its name; empty if it does."""
        absolute, recursive = name_of(name), self.mode is Mode.RECURSIVE
        try:
            address, answer = await self._lookup.ask_server(
                server, absolute, dns.rdatatype.TXT, deadline, recursive=recursive
            )
        except NoDnsAnswerError as error:
            return str(error)
        if alias := alias_in(answer, absolute):
            message = (
                f"{name} is an alias (CNAME) of {printable(alias, 260)} since its record was planned; the next try "
                f"follows it where dns.delegations allows that, else remove the CNAME"
            )
            raise RefusalError(Reason.DNS_REJECTED, message)
        if cut := referral_in(answer, absolute):
            below = printable(cut.to_text(omit_final_dot=True), 260)
            return f"{server.name} ({address}) isn't authoritative: it refers to the servers of {below}"
        lacking = lacking_txt(answer, absolute, values, recursive=recursive)
        return f"{server.name} ({address}) {lacking}" if lacking else ""

    async def _servers(self, name: str, zone: str, deadline: Deadline) -> Sequence[NameServer]:
        if self.mode is Mode.RECURSIVE:
            if not self._lookup.resolvers:
                raise NoDnsAnswerError("there is no resolver to ask: set dns.resolvers")
            return self._lookup.resolvers
        if zone:
            return await self._lookup.servers_of(name_of(zone), deadline)
        _, servers = await self._lookup.locate(name_of(name), deadline)
        return servers
