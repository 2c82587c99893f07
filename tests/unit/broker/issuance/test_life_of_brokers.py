"""Two brokers, one database, one CA and DNS: whichever stands still, dies or loses its lease, at any step of an order."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from certplane.broker.budget.model import IssuerLimits, Limit, LimitScope
from certplane.broker.model import Grant, IdentityKind, Order, Profile
from tests.fakes.faults import FaultScript
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.issuance import NAMES, NO_WAIT, World, caller, csr, ended, issue, kill_all, settle, unavailable
from tests.support.issuing_brokers import LONG, IssuingBroker, tick

HOSTS = ("web1.test", "web2.test")
OTHER_NAMES = ("more.test", "shop.test")
ISSUER_OPERATIONS = ("create_order", "get_order", "answer_challenges", "finalize", "download")
DNS_OPERATIONS = ("present", "wait_until_visible", "remove")
OPERATIONS = ISSUER_OPERATIONS + DNS_OPERATIONS

LIMITS = (
    Limit("orders", LimitScope.ACCOUNT, 3, timedelta(seconds=60)),
    Limit("names", LimitScope.NAMES, 2, timedelta(seconds=60)),
    Limit("failures", LimitScope.FAILED_VALIDATIONS, 3, timedelta(seconds=60)),
)

brokers = st.integers(0, 1)
ticks = st.sampled_from((0, 3, 10, 30, 100, 400))
"""Turns of the loop: until something is under way, or all that can be done without time passing."""


def two_profiles() -> FakePolicy:
    """With a name in common: their orders have lanes of their own, and may be given the same challenge."""
    profiles = [
        Profile("shop", "mixed", NAMES, hash="shop-hash"),
        Profile("more", "multi_san", OTHER_NAMES, hash="more-hash"),
    ]
    return FakePolicy.of([Grant(host, IdentityKind.HOST, host, ("shop", "more")) for host in HOSTS], profiles)


class LifeOfBrokers(RuleBasedStateMachine):
    """What may happen to two brokers that share a database."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(policies=FakePolicySource(two_profiles()))
        self.calls: list[asyncio.Task[Any]] = []
        self.brokers = {0: self.started(), 1: self.started()}
        self.dead: list[IssuingBroker] = []
        self.side_by_side: set[tuple[str, ...]] = set()
        """Name sets of which the CA had two open orders at once."""
        self.watch = ExitStack()
        self.watch.enter_context(self.world.at_failpoints(self._look_at_turns))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def started(self) -> IssuingBroker:
        broker: IssuingBroker = self.run(IssuingBroker(self.world).start())
        return broker

    @initialize(
        handed_back=st.booleans(), shared=st.booleans(), limited=st.booleans(), slow=st.sampled_from(OPERATIONS)
    )
    def ca(self, handed_back: bool, shared: bool, limited: bool, slow: str) -> None:
        """It hands back pending orders, gives equal challenges to orders of one name, has limits; one waits for it."""
        if limited:
            self.world.budgets["fake-ca"] = IssuerLimits("fake-ca", "https://ca.test/directory", "", LIMITS)
        self.world.ca.reuses_pending, self.world.ca.shares_challenges = handed_back, shared
        self._faults(self.brokers[0], slow).hold(slow)

    @rule(which=brokers, host=st.sampled_from(HOSTS), number=st.integers(0, 1), shop=st.booleans(), ticks=ticks)
    def ask(self, which: int, host: str, number: int, shop: bool, ticks: int) -> None:
        """A host asks one of them for a certificate."""
        profile, names = ("shop", NAMES) if shop else ("more", OTHER_NAMES)
        command = issue(csr_pem=csr(f"{host}-{number}-{profile}", names), profile=profile, wait=NO_WAIT)
        self.calls.append(self.loop.create_task(self._one(which).authority.issue(caller(host), command)))
        self.run(settle(ticks))

    @rule(which=brokers, operation=st.sampled_from(OPERATIONS), ticks=ticks)
    def step_hangs(self, which: int, operation: str, ticks: int) -> None:
        """What one of them asks of the CA, or of the DNS, takes its time from now on."""
        self._faults(self._one(which), operation).hold(operation)
        self.run(settle(ticks))

    @rule(which=brokers, ticks=ticks)
    def steps_go_on(self, which: int, ticks: int) -> None:
        """All that hung is done, however late, and works again."""
        self._one(which).issuer.faults.heal()
        self._one(which).solver.faults.heal()
        self.run(settle(ticks))

    @rule(which=brokers, operation=st.sampled_from(OPERATIONS), lost=st.booleans())
    def step_fails(self, which: int, operation: str, lost: bool) -> None:
        """A question of one of them isn't answered, or the answer is lost."""
        faults = self._faults(self._one(which), operation)
        (faults.fail_after if lost else faults.fail)(operation, unavailable())

    @rule(which=brokers, ticks=ticks)
    def lease_ends_unseen(self, which: int, ticks: int) -> None:
        """One of them stands still for longer than its lease, and doesn't know it."""
        self.run(self._one(which).renew(timedelta()))
        self.run(settle(ticks))

    @rule(which=brokers, ticks=ticks)
    def lease_is_given_up(self, which: int, ticks: int) -> None:
        """The database is away for one of them."""
        self._one(which).lease.held = False
        self.run(settle(ticks))

    @rule(which=brokers, ticks=ticks)
    def lease_is_back(self, which: int, ticks: int) -> None:
        """A renewal comes through; the database says whether the lease had ended."""
        self.run(self._have_lease(self._one(which)))
        self.run(settle(ticks))

    @rule(which=brokers, in_order=st.booleans(), at_once=st.booleans(), ticks=ticks)
    def ends(self, which: int, in_order: bool, at_once: bool, ticks: int) -> None:
        """One of them is stopped, or killed: then what it held waits for the end of its lease. One stays."""
        broker = self._one(which)
        if len(self.brokers) == 1 or broker.writes_late():  # what it wrote and nobody lists, only it knows of
            return
        if in_order:
            self.run(broker.drain())
        broker.kill()
        self.dead.append(self.brokers.pop(which))
        if in_order or at_once:
            self.run(broker.renew(timedelta()))
        self.run(settle(ticks))

    @rule(ticks=ticks)
    def starts(self, ticks: int) -> None:
        """Another one is started in its place."""
        for which in {0, 1} - set(self.brokers):
            self.brokers[which] = self.started()
        self.run(settle(ticks))

    @rule(seconds=st.integers(1, 8), hears=st.lists(brokers, unique=True))
    def time_passes(self, seconds: int, hears: list[int]) -> None:
        """Some of them hear of the others meanwhile."""
        self.run(tick(self.world, *{self._one(which) for which in hears}, seconds=seconds))

    @invariant()
    def no_key_has_two_certificates(self) -> None:
        """No ACME order is finalised twice, and no two for one key."""
        assert all(order.finalisations <= 1 for order in self.world.ca.orders.values())
        sent = Counter(order.csr_der for order in self.world.ca.orders.values() if order.finalisations)
        assert all(count == 1 for count in sent.values())

    @invariant()
    def turns_are_one_at_a_time(self) -> None:
        """No order is open at the CA beside another of the same names, however the CA hands back what is pending."""
        assert self.side_by_side == set()

    @invariant()
    def no_place_is_taken_twice(self) -> None:
        """Of no bucket more is taken than it has, whoever takes an order over in the middle."""
        now = self.world.clock.now()
        for bucket in self.run(self.world.stores.budget.state(["https://ca.test/directory"])).buckets.values():
            limit = next(limit for limit in LIMITS if limit.name == bucket.key.limit)
            failed = limit.scope is LimitScope.FAILED_VALIDATIONS  # counted when they happen, whatever is left
            assert failed or bucket.level.full_time <= now + limit.amount * limit.rate.interval

    @invariant()
    def what_has_ended_keeps_no_turn(self) -> None:
        """But for the records that are still to be removed."""
        ended = (order for order in self.world.orders if not order.state.is_open and not order.txt_records)
        assert all(order.lane is None for order in ended)

    def teardown(self) -> None:
        """Once everything works again, every order ends, each certificate is stored once, and no record is left."""
        try:
            self.run(self._see_out())
        finally:
            self.watch.close()
            self.run(self._end())
            self.loop.close()

    async def _see_out(self) -> None:
        for broker in self.dead:
            await broker.renew(timedelta())
        for broker in self.brokers.values():
            broker.issuer.faults.heal()
            broker.solver.faults.heal()
            await self._have_lease(broker)
        for _ in range(600):
            await tick(self.world, *self.brokers.values())
            if all(map(_is_over, self.world.orders)) and not self.world.dns.records:
                break
        orders = self.world.orders
        assert [order for order in orders if not _is_over(order)] == []
        assert self.world.dns.records == {}
        assert all(order.lane is None for order in orders)
        issued = Counter(record.public_key_sha256 for record in self.world.database.certificates.values())
        assert sum(issued.values()) == len(issued) == self.world.ca.finalisations

    async def _end(self) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        await kill_all()

    async def _have_lease(self, broker: IssuingBroker) -> None:
        if not await broker.renew(LONG):
            broker.lease.number += 1
        broker.lease.held = True

    def _one(self, which: int) -> IssuingBroker:
        """The broker of this number, or the only one."""
        return self.brokers.get(which) or next(iter(self.brokers.values()))

    def _faults(self, broker: IssuingBroker, operation: str) -> FaultScript:
        return (broker.solver if operation in DNS_OPERATIONS else broker.issuer).faults

    def _look_at_turns(self, _failpoint: str) -> None:
        """At each step of each order: between two rules an order may come and go."""
        known = Counter(order.dns_names for order in self.world.orders if order.state.is_open and order.acme_order_url)
        self.side_by_side |= {names for names, count in known.items() if count > 1}


def _is_over(order: Order) -> bool:
    return ended(order) and not order.txt_records


LifeOfBrokers.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLifeOfBrokers = LifeOfBrokers.TestCase
