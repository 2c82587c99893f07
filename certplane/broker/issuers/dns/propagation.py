"""Waiting until the TXT records can be seen.

A CA looks from several places and at any of the servers, and a failed validation costs one of five per name and hour
(Let's Encrypt). So a challenge is answered only after all servers have shown all values, and after a settling time if
one is configured.

A server that answers without the record is waited for: a CA that asks it finds nothing. One that gives no answer
(silence, SERVFAIL, REFUSED, not authoritative, no address) is asked again for a moment once all others have the record,
and then left out and told: a CA's resolver turns to the next server too. When none gives an answer, nothing is known,
and it is an error.

| mode | who is asked |
|---|---|
| authoritative | every authoritative server of the zone, without recursion, at one reachable address each |
| recursive | every resolver; one that was asked too early remembers for as long as the zone's SOA says |
| wait | nobody: the settling time is all |
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import dns.name
import dns.rdatatype

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import (
    NoDnsAnswerError,
    alias_in,
    lacking_txt,
    name_of,
    no_answer_in,
    referral_in,
    renaming_in,
)
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.name_servers import NameServer
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.issuers.dns.wildcards import is_wildcard_alias
from certplane.broker.model import TxtRecord
from certplane.errors import Reason, RefusalError

_LEAST_ASK = timedelta(milliseconds=250)
"""No look begins with less time than this: it would find nothing out, and hide what the one before found."""


_SCATTER = 0.2
"""By how much of the interval names look sooner: hundreds that came with one call aren't all looked at in one turn."""


_PATIENCE = timedelta(seconds=10)
"""How long servers that give no answer are asked again once all others have the record: one that is being started again
is back by then, and one that is gone for a day costs each order no more than this."""


_TOLD_AFTER = timedelta(seconds=10)
"""Longer than most providers take: what lasts longer is worth a word to who waits."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one server says: `lacks` why the record isn't there, `silent` why nothing can be known; neither: it is."""

    lacks: str = ""
    silent: str = ""


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
        patience: timedelta = _PATIENCE,
        told_after: timedelta = _TOLD_AFTER,
        rng: random.Random | None = None,
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            lookup: which servers there are.
            mode: which of them are asked.
            timeout: the longest wait for one set of records, the caller's deadline permitting.
            interval: between looks.
            settle: wait after all servers have shown the records.
            patience: how long servers that give no answer are asked again once all others have shown a record.
            told_after: after how long a wait those who wait for the certificate are told what for.
            rng: makes the names that tell a wildcard's CNAME from another; nobody may guess them.
        """
        self._lookup, self.mode = lookup, mode
        self._timeout, self._interval, self._settle, self._patience = timeout, interval, settle, patience
        self._told_after, self._rng = told_after, rng or random.SystemRandom()

    async def wait(
        self, records: Sequence[TxtRecord], deadline: Deadline, tell: Callable[[str], object] | None = None
    ) -> tuple[str, ...]:
        """Return when each server that answers shows every record: what was wrong with those that don't, a line each.

        `tell` hears once for each name what a long wait is for.

        Raises:
            RefusalError: DNS_UNAVAILABLE naming the server that lacked one, and the record, or saying why none answers;
                DNS_REJECTED when the zone doesn't exist or the name is an alias.
        """
        silent: tuple[str, ...] = ()
        if self.mode is not Mode.WAIT:
            silent = await self._wait_for_all(records, deadline.earlier(self._timeout + self._settle), tell)
        if self._settle and not await deadline.sleep(self._settle):
            raise RefusalError(Reason.DNS_UNAVAILABLE, "no time is left to let the TXT records settle")
        return silent

    async def _wait_for_all(
        self, records: Sequence[TxtRecord], deadline: Deadline, tell: Callable[[str], object] | None
    ) -> tuple[str, ...]:
        deadline = deadline.earlier(self._timeout)
        values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for record in records:
            values[record.name, record.zone].add(record.value)
        found = await all_of(
            self._wait_for(name, zone, frozenset(wanted), deadline, tell) for (name, zone), wanted in values.items()
        )
        return tuple(dict.fromkeys(line for lines in found for line in lines))

    async def _wait_for(
        self,
        name: str,
        zone: str,
        values: frozenset[str],
        deadline: Deadline,
        tell: Callable[[str], object] | None,
    ) -> Sequence[str]:
        pause = self._interval * (1 - _SCATTER * zlib.crc32(name.encode()) / 2**32)
        shown: Deadline | None = None
        """Until when those that give no answer are asked again."""
        quiet = Deadline.after(self._told_after, deadline.clock)
        why = ""
        while True:
            silent: list[str] = []
            try:
                found = await self._ask_all(name, zone, values, deadline)
                lacking = [one.lacks for one in found if one.lacks]
                silent = [one.silent for one in found if one.silent]
                if not lacking and not silent:
                    return ()
                missing, now = bool(lacking) or len(silent) == len(found), (lacking or silent)[0]
            except NoDnsAnswerError as error:
                missing, now = True, str(error)
            # A last look that the deadline cut off has nothing to say; the one before it has.
            why = now if deadline.left or not why else why
            if missing:
                shown = None
            else:
                shown = shown or deadline.earlier(self._patience)
                if shown.left < pause + _LEAST_ASK:
                    return silent
            if tell is not None and not quiet.left:
                tell(f"the TXT record at {name} isn't visible yet: {why}")
                tell = None
            if deadline.left < pause + _LEAST_ASK or not await deadline.sleep(pause):
                raise RefusalError(Reason.DNS_UNAVAILABLE, f"the TXT record at {name} isn't visible: {why}")

    async def _ask_all(self, name: str, zone: str, values: frozenset[str], deadline: Deadline) -> list[_Finding]:
        apex, servers = await self._servers(name, zone, deadline)
        found = await all_of(self._ask(server, name, apex, values, deadline) for server in servers)
        if not found:
            raise NoDnsAnswerError("the zone has no name servers")
        return found

    async def _ask(
        self, server: NameServer, name: str, zone: dns.name.Name | None, values: frozenset[str], deadline: Deadline
    ) -> _Finding:
        absolute, recursive = name_of(name), self.mode is Mode.RECURSIVE
        try:
            address, answer = await self._lookup.name_servers.ask(
                server, absolute, dns.rdatatype.TXT, deadline, recursive=recursive
            )
        except NoDnsAnswerError as error:
            return _Finding(silent=str(error))
        if why := no_answer_in(answer, absolute, zone, recursive=recursive):
            return _Finding(silent=f"{server.name} ({address}) {why}")
        if alias := alias_in(answer, absolute):
            return await self._aliased(server, name, alias, deadline)
        if not recursive and (cut := referral_in(answer, absolute)):
            below = one_line(cut.to_text(omit_final_dot=True), 260)
            return _Finding(f"{server.name} ({address}) isn't authoritative: it refers to the servers of {below}")
        lacking = lacking_txt(answer, absolute, values)
        return _Finding(f"{server.name} ({address}) {lacking}" if lacking else "")

    async def _aliased(self, server: NameServer, name: str, alias: str, deadline: Deadline) -> _Finding:
        """A wildcard answers with its CNAME until the server has the record; another CNAME keeps the record out."""

        async def ask(neighbour: dns.name.Name) -> tuple[str, bool]:
            _, answer = await self._lookup.name_servers.ask(
                server, neighbour, dns.rdatatype.TXT, deadline, recursive=self.mode is Mode.RECURSIVE
            )
            return alias_in(answer, neighbour).rstrip(".").lower(), renaming_in(answer, neighbour)

        shown = one_line(alias, 260)
        try:
            wildcard = await is_wildcard_alias(name_of(name), alias.rstrip(".").lower(), ask, self._rng)
        except NoDnsAnswerError as error:
            return _Finding(silent=str(error))
        if wildcard:
            return _Finding(f"{server.name} answers with the CNAME of a wildcard, {shown}, and lacks the record")
        message = (
            f"{name} is an alias (CNAME) of {shown} since its record was planned; the next try follows it where "
            f"dns.delegations and follow_cnames allow that, else remove the CNAME"
        )
        raise RefusalError(Reason.DNS_REJECTED, message)

    async def _servers(
        self, name: str, zone: str, deadline: Deadline
    ) -> tuple[dns.name.Name | None, Sequence[NameServer]]:
        """Who is asked, and the zone that they have; None if it isn't known."""
        if self.mode is Mode.RECURSIVE:
            if not self._lookup.resolvers:
                raise NoDnsAnswerError("there is no resolver to ask: set dns.resolvers")
            return None, await self._lookup.resolvers.servers()
        if zone:
            apex = name_of(zone)
            return apex, await self._lookup.servers_of(apex, deadline)
        found, servers = await self._lookup.locate(name_of(name), deadline)
        return (None if found == dns.name.root else found), servers
