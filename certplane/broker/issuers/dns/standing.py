"""Whether the standing records of dns-persist-01 are there: at every authoritative server, as the CA will want them.

A CA asks whichever server it likes, so that one that lacks the record fails a validation now and then, and failed
validations lock a name. CNAMEs are followed as a CA's resolver follows them; nothing is ever written at their end, so
that it may be anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.TXT

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.delegation import MOST_ALIASES
from certplane.broker.issuers.dns.dns_messages import Answer, NoDnsAnswerError, alias_in, name_of, no_answer_in
from certplane.broker.issuers.dns.name_servers import NameServer
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.issuers.standing_records import (
    Judgement,
    Standing,
    StandingAccount,
    StandingRecord,
    judge_record,
    zone_line,
)
from certplane.broker.model import PreflightCheck, PreflightResult
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted

_CHECK: Final = "record"
_MOST_PARENTS = 4
"""Names above one without a record that are looked at for one that covers it."""
_SOON = timedelta(days=30)
"""Before a record's end that is told: within it, a certificate of ninety days will be renewed once."""
_ORDER = (Standing.OTHER, Standing.BAD, Standing.DOUBTFUL, Standing.GOOD)
"""From worst to best."""


class StandingAccountSource(Protocol):
    """Who knows what standing records must name."""

    async def standing_account(self, timeout: timedelta) -> StandingAccount:
        """The CA's names and our account there. Errors as `Issuer`'s."""
        ...


_NONE: Final = Judgement(Standing.OTHER)
"""Of a server without records at the name."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a server shows: the best of its records, or why it can't be told."""

    server: str
    judgement: Judgement = _NONE
    silence: str = ""


class StandingRecords:
    """Looks for them, without changing anything."""

    def __init__(self, routes: Routes, clock: Clock) -> None:
        """`routes` say who knows each zone; `clock` which records have ended."""
        self._routes, self._clock = routes, clock

    async def check(
        self, wanted: StandingRecord, issuer: str, account: StandingAccount, deadline: Deadline
    ) -> PreflightCheck:
        """One record for the orders at `issuer`. FAILED is sure; what only the CA can know is UNKNOWN."""
        subject = f"{wanted.name} at {issuer}"
        if not account.issuer_domain_names:
            detail = "the CA's directory doesn't say by which name records name it"
            return PreflightCheck(_CHECK, subject, PreflightResult.UNKNOWN, detail, "ask the CA")
        try:
            shown = await self._look(wanted, account, deadline)
        except (NoDnsAnswerError, RefusalError) as error:
            said = error.refusal.message if isinstance(error, RefusalError) else str(error)
            return PreflightCheck(_CHECK, subject, PreflightResult.UNKNOWN, one_line(said, 400))
        answering = [one for one in shown if not one.silence]
        silent = "; ".join(one.silence for one in shown if one.silence)
        if not answering:
            return PreflightCheck(_CHECK, subject, PreflightResult.UNKNOWN, one_line(silent, 400))
        worst = min(answering, key=lambda one: _ORDER.index(one.judgement.standing))
        standing, count = worst.judgement.standing, f"{len(answering)} of {counted(len(shown), 'server')}"
        if standing is Standing.GOOD:
            result, detail, remedy = PreflightResult.OK, f"shown by {count}", ""
            if (until := worst.judgement.until) is not None:
                detail += f"; it ends {until:%Y-%m-%d} (persistUntil)"
                remedy = "publish one that ends later" if until - self._clock.now() < _SOON else ""
        elif standing is Standing.DOUBTFUL:
            result, detail = PreflightResult.UNKNOWN, f"{worst.server} shows one, but {worst.judgement.why}"
            remedy = _remedy(wanted, account)
        else:
            result, remedy = PreflightResult.FAILED, _remedy(wanted, account)
            detail = f"{worst.server} shows none for {account.issuer_domain_names[0]}"
            if standing is Standing.BAD:
                detail = f"{worst.server} shows one that doesn't count: {worst.judgement.why}"
            if covering := await self._covering(wanted, account, deadline):
                result, detail = PreflightResult.UNKNOWN, f"{detail}; the CA may take the one at {covering}"
        if silent and result is PreflightResult.OK:
            result = PreflightResult.UNKNOWN
        return PreflightCheck(_CHECK, subject, result, f"{detail}; {silent}" if silent else detail, remedy)

    async def _covering(self, wanted: StandingRecord, account: StandingAccount, deadline: Deadline) -> str:
        """Where a record above stands that proves the name too (`policy=wildcard`); empty if none does."""
        labels = wanted.domain.split(".")
        for start in range(1, min(len(labels) - 1, _MOST_PARENTS + 1)):
            above = StandingRecord(".".join(labels[start:]), wildcard=True)
            try:
                shown = await self._look(above, account, deadline)
            except (NoDnsAnswerError, RefusalError):
                continue
            if any(one.judgement.standing in {Standing.GOOD, Standing.DOUBTFUL} for one in shown if not one.silence):
                return above.name
        return ""

    async def _look(self, wanted: StandingRecord, account: StandingAccount, deadline: Deadline) -> list[_Shown]:
        """What each server shows at the end of the record's CNAMEs.

        Raises:
            NoDnsAnswerError, RefusalError: the servers can't be found.
        """
        name = wanted.name
        for _ in range(MOST_ALIASES + 1):
            answers = await self._ask(name_of(name), self._routes.of(name), deadline)
            target = next((found for _, answer in answers if (found := _leads_on(answer, name_of(name)))), "")
            if not target:
                return [self._shown(server, answer, wanted, account) for server, answer in answers]
            name = target
        raise NoDnsAnswerError(f"{wanted.name} has more than {MOST_ALIASES} CNAMEs")

    def _shown(self, server: str, answer: Answer | str, wanted: StandingRecord, account: StandingAccount) -> _Shown:
        if isinstance(answer, str):
            return _Shown(server, silence=answer)
        now = self._clock.now()
        found = [judge_record(text, wanted, account, now) for text in _texts(answer)]
        best = max(found, key=lambda one: _ORDER.index(one.standing), default=_NONE)
        return _Shown(server, best)

    async def _ask(self, name: dns.name.Name, route: Route, deadline: Deadline) -> Sequence[tuple[str, Answer | str]]:
        """The answer of each authoritative server, or why it gives none; a resolver's where those can't be asked."""
        kind = dns.rdatatype.TXT
        if route.check.mode is not Mode.AUTHORITATIVE:
            answer = await route.lookup.resolvers.resolve(name, kind, deadline)
            return [("the resolver", answer)] if answer is not None else [("the resolver", _NOTHING)]
        zone, servers = await route.lookup.locate(name, deadline)

        async def ask(server: NameServer) -> tuple[str, Answer | str]:
            try:
                address, answer = await route.lookup.name_servers.ask(server, name, kind, deadline)
            except NoDnsAnswerError as error:
                return server.name, str(error)
            if why := no_answer_in(answer, name, zone):
                return server.name, f"{server.name} ({address}) {why}"
            return server.name, answer

        return await all_of(ask(server) for server in servers)


_NOTHING: Final = Answer(0, authoritative=False, edns=False, wire=b"", texts=frozenset())
"""In the place of a resolver's word that a name doesn't exist."""


def _leads_on(answer: Answer | str, name: dns.name.Name) -> str:
    """Where a CNAME leads whose end the answer doesn't show; empty if there is none, or it does."""
    if isinstance(answer, str) or _texts(answer):
        return ""
    return alias_in(answer, name).rstrip(".").lower()


def _texts(answer: Answer) -> list[str]:
    """The TXT values of an answer, at the name or at the end of its CNAMEs."""
    if answer.texts is not None:
        return [text.decode("utf-8", "replace") for text in answer.texts]
    if answer.alias:
        return []
    return [
        b"".join(record.strings).decode("utf-8", "replace")
        for rrset in answer.answer
        if rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
        if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
    ]


def _remedy(wanted: StandingRecord, account: StandingAccount) -> str:
    if not account.account_url:
        return "publish what `certplane-broker account persist-records` prints"
    return f"publish `{zone_line(wanted, wanted.value(account))}`"
