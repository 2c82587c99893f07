"""What can be known about an order before it is spent at a CA.

`check_order` runs before each order and refuses only what is sure: CAA records that forbid the CA, a challenge name
that is delegated to where the broker may not write, a standing record that isn't there, a zone that doesn't validate.
A doubt never holds an order up. `report` is for people: everything that an order will need, looked at without changing
anything.

What an order needs depends on how names are proved to its CA: challenge names and somebody who writes there for dns-01,
records that stand already for dns-persist-01, and neither where the CA has approved the names beforehand.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

import dns.rdatatype
import dns.rdtypes.ANY.SOA
from typing_extensions import override

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.caa import ParentRecords, Verdict, judge, relevant_records
from certplane.broker.issuers.dns.delegation import Delegations
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.dnssec import DnssecCheck
from certplane.broker.issuers.dns.name_servers import NameServer
from certplane.broker.issuers.dns.provider import CheckableProvider
from certplane.broker.issuers.dns.routes import Routes
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.issuers.dns.standing import StandingAccountSource, StandingRecords
from certplane.broker.issuers.standing_records import StandingAccount, StandingRecord, standing_records
from certplane.broker.model import PreflightCheck, PreflightResult, Profile
from certplane.broker.ports import CaaIdentity, CaaIdentitySource, OrderPreflight
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_LABEL = "_acme-challenge."
_LOOKS: Final = 3
_BETWEEN_LOOKS = timedelta(seconds=2)
"""Servers that are being updated differ for a moment: they are looked at again before that is told."""

_OK, _FAILED, _UNKNOWN = PreflightResult.OK, PreflightResult.FAILED, PreflightResult.UNKNOWN


class DnsPreflight(OrderPreflight):
    """The port `OrderPreflight`, and the report."""

    def __init__(
        self,
        routes: Routes,
        delegations: Delegations,
        cas: Mapping[str, CaaIdentitySource],
        clock: Clock,
        *,
        kinds: Mapping[str, ChallengeKind] = MappingProxyType({}),
        accounts: Mapping[str, StandingAccountSource] = MappingProxyType({}),
    ) -> None:
        """Put it together; nothing is sent.

        Args:
            routes: who writes and looks for each record.
            delegations: where challenge names lead.
            cas: what each issuer calls itself in CAA records, by the issuer's name.
            clock: for deadlines.
            kinds: how names are proved to each issuer; dns-01 to those that aren't there.
            accounts: what the standing records of issuers with dns-persist-01 must name.
        """
        self._routes, self._delegations, self._cas, self._clock = routes, delegations, cas, clock
        self._kinds, self._accounts = kinds, accounts
        self._parents = ParentRecords(clock)
        self._standing = StandingRecords(routes, clock)
        self._dnssec = DnssecCheck(clock)

    def _kind(self, issuer: str) -> ChallengeKind:
        return self._kinds.get(issuer, ChallengeKind.DNS_01)

    @override
    async def check_order(self, dns_names: Sequence[str], issuer: str, timeout: timedelta) -> None:
        deadline = Deadline.after(timeout, self._clock)
        # A resolver whose answers are waited for later must not be asked for names that may not exist yet.
        names = [name for name in dns_names if self._routes.of(_challenge_name(name)).check.mode is not Mode.RECURSIVE]
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                caa = (self._caa(name, issuer, deadline) for name in names)
                checks = await all_of(itertools.chain(caa, self._of_kind(dns_names, names, issuer, deadline)))
                # A resolver that validates has no answer where DNSSEC fails; where it has one, nothing more is asked.
                doubtful = [name for name, check in zip(names, checks, strict=False) if check.result is _UNKNOWN]
                checks += await self._signed(doubtful, deadline)
        except TimeoutError:
            return
        for check in checks:
            if check.result is _FAILED:
                message = "; ".join(text for text in (check.detail, check.remedy) if text)
                raise RefusalError(Reason.DNS_REJECTED, message)

    def _of_kind(
        self, dns_names: Sequence[str], askable: Sequence[str], issuer: str, deadline: Deadline
    ) -> Iterable[Coroutine[Any, Any, PreflightCheck]]:
        """What an order needs by the way in which names are proved to its CA."""
        match self._kind(issuer):
            case ChallengeKind.DNS_01:
                return [self._delegation(name, deadline) for name in _challenge_names(askable)]
            case ChallengeKind.DNS_PERSIST_01:
                return [self._record(wanted, issuer, deadline) for wanted in standing_records(dns_names)]
            case ChallengeKind.NONE:
                return ()

    async def _signed(self, names: Sequence[str], deadline: Deadline) -> list[PreflightCheck]:
        """Whether the zones of these names validate, a check a zone."""
        bare = dict.fromkeys(name.removeprefix("*.") for name in names)
        found = await all_of(self._dnssec.check(name, self._routes.of(name).lookup, deadline) for name in bare)
        return list({check.subject: check for check in found if check is not None}.values())

    async def _record(self, wanted: StandingRecord, issuer: str, deadline: Deadline) -> PreflightCheck:
        source = self._accounts.get(issuer)
        try:
            account = StandingAccount(()) if source is None else await source.standing_account(deadline.left)
        except RefusalError as error:
            return PreflightCheck("record", f"{wanted.name} at {issuer}", _UNKNOWN, _said(error))
        return await self._standing.check(wanted, issuer, account, deadline)

    async def report(self, profile: Profile, issuers: Sequence[str], timeout: timedelta) -> list[PreflightCheck]:
        """Everything that orders of `profile` at these issuers will need. Never raises a refusal."""
        deadline = Deadline.after(timeout, self._clock)
        written = not issuers or any(self._kind(issuer) is ChallengeKind.DNS_01 for issuer in issuers)
        names = _challenge_names(profile.dns_names) if written else []
        caa = await all_of(self._caa(name, issuer, deadline) for issuer in issuers for name in profile.dns_names)
        standing = await all_of(
            self._record(wanted, issuer, deadline)
            for issuer in issuers
            if self._kind(issuer) is ChallengeKind.DNS_PERSIST_01
            for wanted in standing_records(profile.dns_names)
        )
        delegations = await all_of(self._delegation(name, deadline) for name in names)
        ends = [await self._end(name, deadline) for name in names]
        records = list(dict.fromkeys(end for end in ends if end))
        providers = await all_of(self._provider(record, profile, deadline) for record in records)
        servers = await all_of(self._servers(record, deadline) for record in records)
        agreeing = {check.subject: check for check in servers}
        signed = await self._signed(profile.dns_names, deadline)
        return [*caa, *signed, *standing, *delegations, *providers, *agreeing.values()]

    async def _caa(self, name: str, issuer: str, deadline: Deadline) -> PreflightCheck:
        lookup = self._routes.of(name.removeprefix("*.")).lookup
        what = f"{name} at {issuer}"
        try:
            owner, records = await relevant_records(lookup, name, deadline, self._parents)
            identity = await self._identity(issuer, deadline) if records else CaaIdentity()
        except (NoDnsAnswerError, RefusalError) as error:
            return PreflightCheck("caa", what, _UNKNOWN, _said(error))
        verdict = judge(name, owner, records, identity)
        result = {Verdict.ALLOWED: _OK, Verdict.FORBIDDEN: _FAILED, Verdict.UNKNOWN: _UNKNOWN}[verdict.verdict]
        return PreflightCheck("caa", what, result, verdict.message, verdict.remedy)

    async def _identity(self, issuer: str, deadline: Deadline) -> CaaIdentity:
        source = self._cas.get(issuer)
        return CaaIdentity() if source is None else await source.caa_identity(deadline.left)

    async def _delegation(self, name: str, deadline: Deadline) -> PreflightCheck:
        try:
            place = await self._delegations.place(name, deadline)
        except RefusalError as error:
            result = _FAILED if error.refusal.reason is Reason.DNS_REJECTED else _UNKNOWN
            return PreflightCheck("delegation", name, result, error.refusal.message)
        said = " -> ".join(place.chain) if len(place.chain) > 1 else "not delegated"
        if place.wildcard:
            target = one_line(place.wildcard, 260)
            said += f"; the record will hide the CNAME of a wildcard, which leads to {target}"
        return PreflightCheck("delegation", name, _OK, said)

    async def _end(self, name: str, deadline: Deadline) -> str:
        try:
            return (await self._delegations.follow(name, deadline))[-1]
        except RefusalError:
            return ""  # told already

    async def _provider(self, record: str, profile: Profile, deadline: Deadline) -> PreflightCheck:
        route = self._routes.of(record)
        if not isinstance(route.provider, CheckableProvider):
            return PreflightCheck(
                "provider", record, _UNKNOWN, "this provider can't be checked without writing a record"
            )
        try:
            credentials = route.credentials_for(profile.credentials)
            zone = await route.provider.check_zone(record, credentials, deadline)
        except RefusalError as error:
            result = _FAILED if error.refusal.reason is Reason.DNS_REJECTED else _UNKNOWN
            return PreflightCheck("provider", record, result, error.refusal.message)
        return PreflightCheck("provider", record, _OK, f"may write in the zone {zone}")

    async def _servers(self, record: str, deadline: Deadline) -> PreflightCheck:
        """Whether the authoritative servers of the record's zone can be asked, and have the same version of it."""
        route = self._routes.of(record)
        if route.check.mode is not Mode.AUTHORITATIVE:
            return PreflightCheck("servers", record, _UNKNOWN, f"not asked: propagation.mode is {route.check.mode}")
        detail, result, remedy, subject = "", _FAILED, "", record
        for look in range(_LOOKS):
            if look and not await deadline.sleep(_BETWEEN_LOOKS):
                break
            try:
                zone, servers = await route.lookup.locate(name_of(record), deadline)
                if zone == dns.name.root:  # configured servers tell it themselves
                    zone = await route.lookup.zone_of(name_of(record), deadline)
            except (NoDnsAnswerError, RefusalError) as error:
                detail, result, subject = _said(error), _FAILED, record
                continue
            subject = zone.to_text(omit_final_dot=True)
            found = await all_of(self._serial(server, zone, record, deadline) for server in servers)
            silent = [said for said, serial in found if serial is None]
            serials = [serial for _, serial in found if serial is not None]
            detail = _disagreement(found)
            if not detail and not silent:
                said = f"{len(servers)} of {len(servers)} answer, with serial {serials[0]}"
                return PreflightCheck("servers", subject, _OK, said)
            if not detail:
                result = _UNKNOWN
                detail = f"{len(serials)} of {len(servers)} answer, with serial {serials[0]}: {'; '.join(silent[:3])}"
                remedy = "repair or remove the server: each order asks it for some seconds, then goes on without it"
            else:
                result, remedy = _FAILED, "repair the servers: no challenge is answered until those that answer agree"
        return PreflightCheck("servers", subject, result, detail, remedy)

    async def _serial(
        self, server: NameServer, zone: dns.name.Name, record: str, deadline: Deadline
    ) -> tuple[str, int | None]:
        """A server with its SOA serial; with what is wrong and None if it has none."""
        lookup = self._routes.of(record).lookup
        try:
            address, answer = await lookup.name_servers.ask(server, zone, dns.rdatatype.SOA, deadline)
        except NoDnsAnswerError as error:
            return str(error), None
        for rrset in answer.answer:
            for soa in rrset:
                if isinstance(soa, dns.rdtypes.ANY.SOA.SOA) and answer.authoritative:
                    return server.name, soa.serial
        return f"{server.name} ({address}) isn't authoritative for the zone ({answer.rcode_text})", None


def _disagreement(found: Sequence[tuple[str, int | None]]) -> str:
    """What keeps every order from going on: no server answers, or those that do have different versions; else empty."""
    answering = [(name, serial) for name, serial in found if serial is not None]
    if not answering:
        return "; ".join(said for said, _ in found[:3]) or "the zone has no name servers"
    if len({serial for _, serial in answering}) > 1:
        return "the servers have different versions: " + ", ".join(f"{name} {serial}" for name, serial in answering[:6])
    return ""


def _challenge_name(name: str) -> str:
    return _LABEL + name.removeprefix("*.")


def _challenge_names(names: Sequence[str]) -> list[str]:
    """Each once: an apex and its wildcard share one."""
    return list(dict.fromkeys(map(_challenge_name, names)))


def _said(error: NoDnsAnswerError | RefusalError) -> str:
    return one_line(error.refusal.message if isinstance(error, RefusalError) else str(error), 400)
