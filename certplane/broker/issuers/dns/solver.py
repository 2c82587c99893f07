"""`DnsSolver`: the port `ChallengeSolver`, on providers and propagation checks, by zone.

One writer a challenge name: while an order's records of a name are being written or removed, another order's of that
name wait. Two orders of overlapping names would else trample on one another where a provider replaces what it finds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from typing_extensions import override

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.delegation import Delegations, Place
from certplane.broker.issuers.dns.provider import AccountFinding, CheckableProvider, NoSuchZoneError
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.broker.ports import ChallengeSolver, KeepsSecrets
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.keyed_lock import KeyedLock

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DnsSolver(ChallengeSolver):
    """Makes the world see TXT records, and removes them."""

    def __init__(
        self, routes: Routes, clock: Clock, *, delegations: Sequence[str] = (), secrets: KeepsSecrets | None = None
    ) -> None:
        """Put it together; nothing is sent.

        Args:
            routes: who writes and looks for each record.
            clock: for deadlines.
            delegations: names at or below which the CNAME of a challenge name may lead.
            secrets: what keeps the providers' secrets, and may have to forget them; None when nothing does.
        """
        self._routes, self._clock, self._secrets = routes, clock, secrets
        self._delegations = Delegations(delegations, routes)
        self._names = KeyedLock[str]()

    @property
    def routes(self) -> Routes:
        """Who writes and looks for each record."""
        return self._routes

    @property
    def delegations(self) -> Delegations:
        """Where challenge names lead."""
        return self._delegations

    async def close(self) -> None:
        """Close the providers' connections."""
        async with AsyncExitStack() as stack:
            for provider in self._routes.providers():
                stack.push_async_callback(provider.close)

    @override
    async def plan(
        self, challenges: Sequence[DnsChallenge], profile: Profile, timeout: timedelta
    ) -> Sequence[TxtRecord]:
        deadline = Deadline.after(timeout, self._clock)
        names = list(dict.fromkeys(challenge.record_name for challenge in challenges))
        places = dict(zip(names, await all_of(self._delegations.place(name, deadline) for name in names), strict=True))
        return [self._planned(challenge, places[challenge.record_name], profile) for challenge in challenges]

    def _planned(self, challenge: DnsChallenge, place: Place, profile: Profile) -> TxtRecord:
        name = place.chain[-1]
        route = self._routes.of(name)
        if name != challenge.record_name:
            fields = {"record_name": challenge.record_name, "delegated_to": name}
            _log.info("challenge name is delegated", extra={"fields": fields})
        if place.wildcard:
            fields = {"record_name": name, "wildcard_target": one_line(place.wildcard, 260)}
            _log.info("the record will hide the CNAME of a wildcard", extra={"fields": fields})
        record = route.provider.plan(replace(challenge, record_name=name), profile)
        return replace(record, credentials=route.credentials_for(record.credentials))

    @override
    async def present(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        deadline = Deadline.after(timeout, self._clock)

        async def add(record: TxtRecord, route: Route) -> TxtRecord:
            written = await self._within(deadline, lambda: route.provider.add_txt(record, deadline))
            _log.info("TXT record written", extra=_fields(written))
            failpoint("dns.present.written")
            return written

        def late(record: TxtRecord, error: RefusalError) -> TxtRecord:  # noqa: ARG001 - whichever it is
            raise error

        return await self._by_name(records, deadline, add, late)

    @override
    async def wait_until_visible(
        self, records: Sequence[TxtRecord], timeout: timedelta, tell: Callable[[str], object] | None = None
    ) -> Sequence[str]:
        deadline = Deadline.after(timeout, self._clock)
        by_route: defaultdict[str, list[TxtRecord]] = defaultdict(list)
        for record in records:
            by_route[self._routes.of(record.name).zone].append(record)
        found = await all_of(
            self._routes.of(group[0].name).check.wait(group, deadline, tell) for group in by_route.values()
        )
        for record in records:
            _log.info("TXT record visible", extra=_fields(record))
        return list(dict.fromkeys(line for lines in found for line in lines))

    @override
    async def remove(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        deadline = Deadline.after(timeout, self._clock)

        async def remove(record: TxtRecord, route: Route) -> bool:
            try:
                await self._within(deadline, lambda: route.provider.remove_txt(record, deadline))
            except NoSuchZoneError as error:
                if record.zone or record.record_id:
                    _log.warning("TXT record not removed: %s", error, extra=_fields(record))
                    return False
                # It was planned and never written: there is nothing to remove, now or at any later start.
                _log.info("TXT record was never written: %s", error, extra=_fields(record))
                return True
            except RefusalError as error:
                _log.warning("TXT record not removed: %s", error, extra=_fields(record))
                return False
            except Exception:  # noqa: BLE001 - an order never fails over tidying up: what stands is returned
                _log.exception("TXT record not removed", extra=_fields(record))
                return False
            _log.info("TXT record removed", extra=_fields(record))
            failpoint("dns.remove.removed")
            return True

        def late(record: TxtRecord, error: RefusalError) -> bool:
            _log.warning("TXT record not removed: %s", error, extra=_fields(record))
            return False

        removed = await self._by_name(records, deadline, remove, late)
        return [record for record, gone in zip(records, removed, strict=True) if not gone]

    async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> Sequence[AccountFinding]:
        """What is wrong with the credentials that these profiles' records would be written with.

        Providers that can't tell are left out; what can't be told now is a finding that isn't fatal. Never raises.
        """
        deadline = Deadline.after(timeout, self._clock)
        used: dict[tuple[int, str], Route] = {}
        for profile in profiles:
            for name in profile.dns_names:
                route = self._routes.of(f"_acme-challenge.{name.removeprefix('*.')}")
                used[id(route.provider), route.credentials_for(profile.credentials)] = route
        for route in self._routes:
            if route.credentials:
                used[id(route.provider), route.credentials] = route
        findings = await all_of(_check_account(route, name, deadline) for (_, name), route in used.items())
        return [finding for found in findings for finding in found]

    async def _by_name(
        self,
        records: Sequence[TxtRecord],
        deadline: Deadline,
        act: Callable[[TxtRecord, Route], Coroutine[Any, Any, T]],
        late: Callable[[TxtRecord, RefusalError], T],
    ) -> list[T]:
        """Do `act` with each record, names side by side, as the only writer of each name; results in order.

        `late` gives the result of a record whose turn doesn't come before the deadline.
        """
        numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, record in enumerate(records):
            numbers[record.name].append(number)
        results: dict[int, T] = {}

        async def one_name(name: str, mine: list[int]) -> None:
            route = self._routes.of(name)
            async with AsyncExitStack() as turn:
                try:
                    await _enter(turn, self._names.holding(name), deadline)
                    if not route.provider.gathers_writes:
                        await _enter(turn, route.writes, deadline)
                except RefusalError as error:
                    results.update({number: late(records[number], error) for number in mine})
                    return
                if route.provider.gathers_writes:
                    results.update(zip(mine, await all_of(act(records[n], route) for n in mine), strict=True))
                    return
                for number in mine:
                    results[number] = await act(records[number], route)

        await all_of(one_name(name, mine) for name, mine in numbers.items())
        return [results[number] for number in range(len(records))]

    async def _within(self, deadline: Deadline, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            async with asyncio.timeout(deadline.left.total_seconds()):
                return await self._with_fresh_secrets(write)
        except TimeoutError as error:
            raise _too_long() from error

    async def _with_fresh_secrets(self, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Write; once more, with the secrets of now, if it was refused with one that was read a while ago.

        A secret that was replaced in between would else stop its orders as if a person had to see to it.
        """
        if self._secrets is None:
            return await write()
        generation = self._secrets.generation
        try:
            return await write()
        except RefusalError as error:
            refused = error.refusal.reason is Reason.DNS_REJECTED and not isinstance(error, NoSuchZoneError)
            if not refused or not self._secrets.forget(generation):
                raise
        return await write()


async def _check_account(route: Route, credentials: str, deadline: Deadline) -> Sequence[AccountFinding]:
    if not isinstance(route.provider, CheckableProvider):
        return ()
    try:
        return await route.provider.check_account(credentials, deadline)
    except RefusalError as error:
        fatal = error.refusal.reason is Reason.DNS_REJECTED
        remedy = "store a valid secret" if fatal else "none, if it passes"
        return [AccountFinding(error.refusal.message, remedy, fatal=fatal)]
    except Exception as error:  # noqa: BLE001 - a look that fails must not end the others
        _log.exception("credentials of a DNS provider can't be checked")
        return [AccountFinding(f"credentials can't be checked ({type(error).__name__})", "see the log")]


async def _enter(stack: AsyncExitStack, gate: AbstractAsyncContextManager[object], deadline: Deadline) -> None:
    """Wait for `gate` until the deadline, and leave it with the stack."""
    try:
        async with asyncio.timeout(deadline.left.total_seconds()):
            await stack.enter_async_context(gate)
    except TimeoutError as error:
        raise _too_long() from error


def _too_long() -> RefusalError:
    return RefusalError(Reason.DNS_UNAVAILABLE, "the DNS provider took too long")


def _fields(record: TxtRecord) -> dict[str, dict[str, str]]:
    # A name and its wildcard have a record each of one name: only the value tells their lines apart.
    fields = {"record_name": record.name, "record_value": record.value, "zone": record.zone}
    return {"fields": {**fields, "record_id": record.record_id}}
