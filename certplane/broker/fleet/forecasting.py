"""When certificates of the fleet would be issued again, by the CAs' limits as the ledger has them now.

What decides is pure (`budget.forecast`); here is what it has to know: the ledger's rows, which certificates' windows
are open, and for which names a CA has issued before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker.budget.claims import claim_of, urgency_of
from certplane.broker.budget.forecast import Forecast, forecast, in_force
from certplane.broker.budget.model import SAME_NAMES_WITHIN, Claim, IssuerLimits, LedgerState, Urgency
from certplane.broker.budget.overview import IssuerView, left_text, overview
from certplane.broker.budget.ports import BudgetReader
from certplane.broker.model import Order
from certplane.broker.ports import PolicySource
from certplane.broker.renewal.model import InForce, Selection
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_TOGETHER: Final = 128
"""Hosts whose certificates are read at once."""
_SHOWN_FOR: Final = timedelta(seconds=5)
"""How old the ledger in a list of orders may be: a watch lists what has changed many times a second."""
_MOST_LOOKED_UP: Final = 500
"""Sets of names that are looked up among the orders, where their certificates in force don't tell: a read each. Those
beyond count as new: the forecast is later then, never too early."""


class Replaced(Protocol):
    """A certificate that would be replaced."""

    @property
    def certificate_id(self) -> str:
        """Which one."""
        ...

    @property
    def host(self) -> str:
        """Whose."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a certificate's next order needs, and whether the one in force shows that its names are known there."""

    claim: Claim
    known: bool


class Forecasts:
    """Forecasts, and shows what the limits leave."""

    def __init__(
        self,
        reader: BudgetReader,
        plans: RenewalPlanStore,
        policy: PolicySource,
        budgets: Mapping[str, IssuerLimits],
        *,
        pool: BlockingPool,
        clock: Clock,
    ) -> None:
        """Nothing is read yet.

        Args:
            reader: The ledger.
            plans: Certificates in force, with their windows.
            policy: For which names they would be issued again, and where.
            budgets: What each issuer may be asked for, by name; the first is that of profiles that name none.
            pool: Computes what would hold the event loop.
            clock: The time.
        """
        self._reader, self._plans, self._policy = reader, plans, policy
        self._budgets = dict(budgets)
        self._pool, self._clock = pool, clock
        self._recent: tuple[float, LedgerState] | None = None

    async def of_selection(self, selection: Selection, issuer: str = "") -> tuple[Forecast, int]:
        """When those would be issued that are selected now, and how many are.

        `issuer` is where, instead of their profiles' own.

        Raises:
            RefusalError: STORE_UNAVAILABLE; POLICY_UNAVAILABLE, none was ever loaded.
        """
        selected = await self._plans.select(selection, self._clock.now())
        return await self.of(selected, issuer), len(selected)

    async def of(self, certificates: Sequence[Replaced], issuer: str = "") -> Forecast:
        """When these would be issued again: those of them that are in force, and that the policy still gives.

        Raises:
            RefusalError: as `of_selection`.
        """
        now = self._clock.now()
        wanted = {each.certificate_id for each in certificates}
        hosts = sorted({each.host for each in certificates})
        found: list[InForce] = []
        for start in range(0, len(hosts), _TOGETHER):
            some = await self._plans.in_force_of(hosts[start : start + _TOGETHER], now)
            found += [one for one in some if one.certificate_id in wanted]
        state = await self._state()
        # Off the loop: ten thousand take a quarter of a second.
        asked = await self._pool.run(self._asked, found, issuer, now)
        known: set[tuple[str, str]] = set()
        for name, digests in _to_look_up(asked).items():
            known |= {(name, digest) for digest in await self._reader.known_names([name], digests)}
        return await self._pool.run(self._forecast, state, asked, known)

    async def overview(self, issuers: Collection[str] = (), names: Collection[str] = ()) -> Sequence[IssuerView]:
        """What each issuer may be asked for; only of these `issuers`, and for these `names`, if there are some.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        state = await self._state()
        return await self._pool.run(overview, state, [*self._budgets.values()], issuers, names)

    async def left(self, orders: Sequence[Order]) -> Mapping[str, str]:
        """By order id what the limits leave of what each needs, for people, some seconds old.

        Orders that need nothing are left out.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        counted = [order for order in orders if order.issuer in self._budgets and self._budgets[order.issuer].limits]
        if not counted:
            return {}
        now = self._clock.monotonic()
        if self._recent is None or now >= self._recent[0]:
            self._recent = (now + _SHOWN_FOR.total_seconds(), await self._state())
        return await self._pool.run(self._left, counted, self._recent[1])

    async def _state(self) -> LedgerState:
        urls = {each.directory_url for each in self._budgets.values() if each.limits}
        state = await self._reader.state(urls)
        return await self._pool.run(in_force, state, [*self._budgets.values()])

    def _left(self, orders: Sequence[Order], state: LedgerState) -> Mapping[str, str]:
        texts = {}
        for order in orders:
            claim = claim_of(self._budgets[order.issuer], order.dns_names, urgency=Urgency(1, state.time, ""))
            if text := left_text((need for need in claim.needs if need.takes), state):
                texts[order.order_id] = text
        return texts

    def _asked(self, certificates: Sequence[InForce], to: str, now: datetime) -> Sequence[_Asked]:
        """What their orders would need: as `issuance` asks for them."""
        policy, asked = self._policy.current, []
        for one in certificates:
            profile = policy.granted(one.host, one.profile)
            if profile is None:
                continue
            issuer = to or next((name for name in profile.issuers if name in self._budgets), next(iter(self._budgets)))
            same = issuer == one.issuer and profile.dns_names == one.dns_names
            limits = self._budgets.get(issuer)
            if limits is None:
                continue
            claim = claim_of(
                limits,
                profile.dns_names,
                urgency=urgency_of(one.certificate_id, one.not_after, now),
                ari=issuer == one.issuer and one.plan is not None and one.plan.in_window(now),
            )
            asked.append(_Asked(claim, known=same and one.not_before > now - SAME_NAMES_WITHIN))
        return asked

    def _forecast(self, state: LedgerState, asked: Sequence[_Asked], known: Collection[tuple[str, str]]) -> Forecast:
        claims = []
        for each in asked:
            claim = each.claim
            if each.known or (claim.issuer, claim.names_sha256) in known:
                needs = tuple(need for need in claim.needs if not need.unless_known)
                claim = replace(claim, needs=needs)
            claims.append(claim)
        return forecast(state, claims, [*self._budgets.values()])


def _to_look_up(asked: Sequence[_Asked]) -> Mapping[str, Collection[str]]:
    """By issuer the sets of names of which only its orders tell whether it has issued for them."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in asked:
        claim = each.claim
        names = found[claim.issuer]
        if not each.known and len(names) < _MOST_LOOKED_UP and any(need.unless_known for need in claim.needs):
            names.add(claim.names_sha256)
    return found
