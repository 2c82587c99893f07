"""Tells hosts that have connected the renewal plans that they don't know, except those that they have refused.

And which of the certificates that they hold for a rollout they may use, until their reports show that they know.

Some hosts at a time, so that a fleet's return is not slowed by it. Computed from durable state, so that it is the same
after any restart; which refusals stand is in memory, and a broker that is started again, or to which a host comes from
another one, asks once more. A host that could not take a directive over *for now* (its disk is full) is told again
after ten minutes.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final, Protocol

from typing_extensions import override

from certplane.broker.fleet.knowledge import (
    PlanMark,
    held_certificates,
    mark,
    revoked_plan,
    unknown_activations,
    unknown_identity_plan,
    unknown_plans,
)
from certplane.broker.fleet.messages import Directive
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import Activations, FleetStore
from certplane.broker.fleet.settings import RETRY
from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import HostActivation, InForce, RenewalPlan
from certplane.broker.renewal.ports import RenewalPlanStore, RequestItems
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker.fleet")

_TOGETHER: Final = 128
"""Hosts that are read about together."""
_GATHERING: Final = timedelta(milliseconds=100)
"""In which more come: each query costs a change of threads."""
_TOLD_AGAIN: Final = timedelta(minutes=10)
"""After a host could not take a directive over for now: a full disk, a bug of its agent."""
_FOR_NOW: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.INTERNAL})
"""Refusals of a directive that say nothing against it."""


class ToldPlans(RenewalPlanStore, RequestItems, Protocol):
    """What hosts are told of: plans for certificates, and requests for identities."""


class NoActivations(Activations):
    """Nothing was ever held."""

    @override
    async def activations_of(self, hosts: Sequence[str]) -> Sequence[HostActivation]:
        return ()


class PlanTeller:
    """Tells the hosts of one broker their plans, and knows what each has refused."""

    def __init__(
        self,
        *,
        store: FleetStore,
        plans: ToldPlans,
        activations: Activations,
        find_certificate: Callable[[str], Awaitable[CertificateRecord | None]],
        tell: Callable[[str, list[RenewalPlan], list[HostActivation]], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """No host has connected yet; `tell` is called with a host and what it doesn't know of both."""
        self._store = store
        self._plans = plans
        self._activations = activations
        self._find_certificate = find_certificate
        self._tell_host = tell
        self._clock = clock
        self._rng = rng
        self._refused: dict[str, frozenset[PlanMark]] = {}
        self._taken_back: list[tuple[str, int]] = []
        self._postponed: dict[str, float] = {}
        """Hosts that could not take a directive over, and the monotonic time to tell them again, the soonest first."""
        self._arrived: dict[str, bool] = {}
        """Who is to be told soon: everything, or of activations alone."""
        self._arrival = asyncio.Event()

    def tell_soon(self, host: str) -> None:
        """Tell the host what it doesn't know, with others that come now."""
        self._arrived[host] = True
        self._arrival.set()

    def tell_activations_soon(self, host: str) -> None:
        """Tell the host which of the certificates that it holds it may use, with others."""
        self._arrived.setdefault(host, False)
        self._arrival.set()

    def tell_postponed(self, connected: Container[str]) -> None:
        """Tell the hosts again whose time has come, those that are `connected`."""
        now = self._clock.monotonic()
        while self._postponed and (first := next(iter(self._postponed.items())))[1] <= now:
            del self._postponed[first[0]]
            if first[0] in connected:
                self.tell_soon(first[0])

    def refuses(self, plan: RenewalPlan) -> bool:
        """Whether its host has refused this very plan."""
        return mark(plan) in self._refused.get(plan.host, ())

    def take_back_earlier(self, host: str, stream_epoch: int) -> None:
        """The host has taken a directive: a refusal that it made on an earlier stream stands no more."""
        self._taken_back.append((host, stream_epoch))

    def pop_taken_back(self) -> list[tuple[str, int]]:
        """The hosts whose earlier refusals were taken back since this was asked, and that have made no new one.

        With the number of the stream on which each did.
        """
        hosts, self._taken_back = self._taken_back, []
        return [one for one in hosts if one[0] not in self._refused]

    def take_back(self, host: str) -> bool:
        """The host has taken a directive: what it refused may be said again; whether there was something."""
        return self._refused.pop(host, None) is not None

    def forget(self, host: str) -> None:
        """What the host refused may be said again, should it come back: it has heard another broker since."""
        self._refused.pop(host, None)

    def forget_all(self) -> None:
        """The same of all hosts."""
        self._refused.clear()

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
        """Work until cancelled."""
        failures = 0
        while True:
            await self._arrival.wait()
            while self._arrived:
                await self._clock.sleep(_GATHERING)
                hosts = dict(islice(self._arrived.items(), _TOGETHER))
                for host in hosts:
                    del self._arrived[host]
                try:
                    await self._tell(hosts)
                except RefusalError as error:
                    failures += 1
                    if failures == 1:
                        _logger.warning("could not read renewal plans; will retry: %s", error)
                    for host, whole in hosts.items():
                        self._arrived[host] = whole or self._arrived.get(host, False)
                    await self._clock.sleep(RETRY.wait(failures, self._rng))
                except Exception as error:  # noqa: BLE001 - of one of them, and said there
                    _logger.warning("could not read the plans of several hosts; reading one by one: %r", error)
                    for host, whole in hosts.items():
                        await self._tell_alone(host, whole=whole)
                else:
                    failures = 0
            self._arrival.clear()

    async def _tell_alone(self, host: str, *, whole: bool) -> None:
        """Tell one host of several of which one can't be read, so that the others hear of their plans."""
        try:
            await self._tell({host: whole})
        except RefusalError:
            self._arrived[host] = whole or self._arrived.get(host, False)
        except Exception:
            # It goes on without: its certificates have times of their own, and each change is told.
            _logger.exception("could not tell a host its renewal plans", extra={"fields": {"host": host}})

    async def _tell(self, hosts: Mapping[str, bool]) -> None:
        whole = [host for host, everything in hosts.items() if everything]
        identities = {found[1].host: found for found in await self._plans.identity_renewals(whole)}
        in_force = defaultdict(list)
        for certificate in await self._plans.in_force_of(whole, self._clock.now()):
            in_force[certificate.host].append(certificate)
        released = defaultdict(list)
        for activation in await self._activations.activations_of([*hosts]):
            released[activation.host].append(activation)
        for record in await self._store.list_hosts(hosts=[*hosts]):
            plans: list[RenewalPlan] = []
            if hosts[record.host]:
                plans += await self._plans_for(record, in_force[record.host])
                refused = self._refused.get(record.host, frozenset())
                if (identity := unknown_identity_plan(identities.get(record.host), record, refused)) is not None:
                    plans.append(identity)
            activations = unknown_activations(released[record.host], record.certificates)
            if plans or activations:
                self._tell_host(record.host, plans, activations)

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
