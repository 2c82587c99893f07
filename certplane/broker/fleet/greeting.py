"""What hosts that have come are told: the plans that they don't know, but for what they have refused.

Some hosts at a time, so that a fleet's return is not slowed by it. Computed from durable state, so that it is the same
after any restart; which refusals stand is in memory, and a broker that is started again asks once more. A host that
could not take a directive over *for now* (its disk is full) is looked at again after ten minutes.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

from certplane.broker.fleet.knowledge import PlanMark, held_certificates, mark, revoked_plan, unknown_plans
from certplane.broker.fleet.messages import Directive
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import InForce, RenewalPlan, Selection
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker.fleet")

_RETRY: Final = Backoff(timedelta(seconds=1), timedelta(seconds=30))
"""Between tries to read what the store refuses."""
_GREETED: Final = 128
"""Hosts that are read about together."""
_GREETING_PAUSE: Final = timedelta(milliseconds=100)
"""In which more come: each query costs a change of threads."""
_TOLD_AGAIN: Final = timedelta(minutes=10)
"""After a host could not take a directive over for now: a full disk, a fault of its agent."""
_FOR_NOW: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.INTERNAL})
"""Refusals of a directive that say nothing against it."""


class Greeter:
    """Greets the hosts of one broker, and knows what each has refused."""

    def __init__(
        self,
        *,
        store: FleetStore,
        plans: RenewalPlanStore,
        find_certificate: Callable[[str], Awaitable[CertificateRecord | None]],
        tell: Callable[[str, list[RenewalPlan]], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Nobody has come yet; `tell` is called with a host and the plans that it doesn't know."""
        self._store = store
        self._plans = plans
        self._find_certificate = find_certificate
        self._tell_host = tell
        self._clock = clock
        self._rng = rng
        self._refused: dict[str, frozenset[PlanMark]] = {}
        self._postponed: dict[str, float] = {}
        """Hosts that could not take a directive over, and the monotonic time to tell them again, the soonest first."""
        self._arrived: dict[str, None] = {}
        self._arrival = asyncio.Event()

    def greet(self, host: str) -> None:
        """Look soon what the host doesn't know."""
        self._arrived[host] = None
        self._arrival.set()

    def greet_postponed(self, connected: Collection[str]) -> None:
        """Greet again the hosts whose time has come, those that are `connected`."""
        now = self._clock.monotonic()
        while self._postponed and (first := next(iter(self._postponed.items())))[1] <= now:
            del self._postponed[first[0]]
            if first[0] in connected:
                self.greet(first[0])

    def refuses(self, plan: RenewalPlan) -> bool:
        """Whether its host has refused this very plan."""
        return mark(plan) in self._refused.get(plan.host, ())

    def has_refused(self, host: str) -> bool:
        """Whether a refusal of the host stands."""
        return host in self._refused

    def take_back(self, host: str) -> bool:
        """The host has taken a directive: what it refused may be said again; whether there was something."""
        return self._refused.pop(host, None) is not None

    def note_refused(self, host: str, directive: Directive, reason: Reason) -> None:
        """Don't say it again; with what the host refused before, as far as that is another certificate's."""
        if reason in _FOR_NOW:
            self._postponed.pop(host, None)
            self._postponed[host] = self._clock.monotonic() + _TOLD_AGAIN.total_seconds()
            return
        marks = frozenset(map(mark, directive.renewals))
        renewed = {certificate_id for certificate_id, _ in marks}
        before = self._refused.get(host, frozenset())
        self._refused[host] = marks | {one for one in before if one[0] not in renewed}

    async def run(self) -> None:
        """Tell hosts that have come what they don't know: some at a time, so that it doesn't slow a fleet's return."""
        failures = 0
        while True:
            await self._arrival.wait()
            while self._arrived:
                await self._clock.sleep(_GREETING_PAUSE)
                hosts = tuple(islice(self._arrived, _GREETED))
                for host in hosts:
                    del self._arrived[host]
                try:
                    await self._tell(hosts)
                except RefusalError as error:
                    failures += 1
                    if failures == 1:
                        _logger.warning("plans can't be read, and are tried again: %s", error)
                    self._arrived.update(dict.fromkeys(hosts))
                    await self._clock.sleep(_RETRY.wait(failures, self._rng))
                except Exception as error:  # noqa: BLE001 - of one of them, and said there
                    _logger.warning("hosts that have come are read about one by one: %r", error)
                    for host in hosts:
                        await self._tell_alone(host)
                else:
                    failures = 0
            self._arrival.clear()

    async def _tell_alone(self, host: str) -> None:
        """Tell a host that came with one about whom something can't be read: so that the others hear of their plans."""
        try:
            await self._tell((host,))
        except RefusalError:
            self._arrived[host] = None
        except Exception:
            # It goes on without: its certificates have times of their own, and each change is told.
            _logger.exception("a host that has come can't be told its plans", extra={"fields": {"host": host}})

    async def _tell(self, hosts: tuple[str, ...]) -> None:
        in_force = defaultdict(list)
        for certificate in await self._plans.select(Selection(hosts=hosts), self._clock.now()):
            in_force[certificate.host].append(certificate)
        for record in await self._store.list_hosts(hosts=hosts):
            plans = await self._plans_for(record, in_force[record.host])
            if plans:
                self._tell_host(record.host, plans)

    async def _plans_for(self, record: HostRecord, in_force: Sequence[InForce]) -> list[RenewalPlan]:
        refused = self._refused.get(record.host, frozenset())
        plans = unknown_plans(in_force, record.certificates, refused)
        for certificate_id in held_certificates(record.certificates).keys() - {one.certificate_id for one in in_force}:
            certificate = await self._find_certificate(certificate_id)
            # Hosts say what they like: another one's certificate is no business of this one.
            if certificate is not None and certificate.identity == record.host:
                plan = revoked_plan(certificate)
                if plan is not None and mark(plan) not in refused:
                    plans.append(plan)
        return plans
