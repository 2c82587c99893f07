"""The life of orders under whatever comes: faults, crashes, reloads, time; what must hold holds after every step."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from certplane.broker.events import AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.model import IssuerOrderStatus, OrderState, RevocationReason
from certplane.errors import Reason, RefusalError
from certplane.pki.chain import leaf_facts
from tests.support.issuance import NO_WAIT, World, caller, ended, issue, kill_all, policy, settle, unavailable

HOSTS = ("web1.test", "web2.test")
ISSUER_OPERATIONS = ("create_order", "get_order", "answer_challenges", "finalize", "download")
DNS_OPERATIONS = ("present", "wait_until_visible", "remove")
STORE_OPERATIONS = ("open_order", "change_order", "finish_order", "mark_delivered", "get_order", "find_cached")

ticks = st.integers(0, 40)


class OrderLife(RuleBasedStateMachine):
    """Callers, a CA, a DNS provider, a disk, an operator and a power supply, none of which can be relied on."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.calls: list[asyncio.Task[Any]] = []
        self.authority: RegistrationAuthority = self.run(self.world.started())
        self.ca_gave_up = False
        """The CA invalidated or forgot an order: what it had issued for it may be lost."""
        self.shop_gone = False

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(host=st.sampled_from(HOSTS), number=st.integers(0, 2), renew=st.booleans(), ticks=ticks)
    def ask(self, host: str, number: int, renew: bool, ticks: int) -> None:
        """A host asks for a certificate, perhaps to replace its latest."""
        mine = [record for record in self.world.database.certificates.values() if record.identity == host]
        replaces = mine[-1].certificate_id if renew and mine else ""
        command = issue(f"{host}-{number}", wait=NO_WAIT, replaces=replaces)
        self.calls.append(self.loop.create_task(self.authority.issue(caller(host), command)))
        self.run(settle(ticks))

    @rule(ticks=ticks)
    def leave(self, ticks: int) -> None:
        """All callers hang up."""
        for call in self.calls:
            call.cancel()
        self.run(settle(ticks))

    @rule(operation=st.sampled_from(ISSUER_OPERATIONS), lost=st.booleans(), times=st.integers(1, 3))
    def issuer_fault(self, operation: str, lost: bool, times: int) -> None:
        """The CA is away, or its answers get lost."""
        faults = self.world.issuer.faults
        (faults.fail_after if lost else faults.fail)(operation, unavailable(), times=times)

    @rule(
        operation=st.sampled_from(("create_order", "answer_challenges", "finalize")),
        reason=st.sampled_from((Reason.ISSUER_REJECTED, Reason.ISSUER_RATE_LIMITED)),
        minutes=st.sampled_from((None, 0.5, 30)),
    )
    def issuer_refusal(self, operation: str, reason: Reason, minutes: float | None) -> None:
        """The CA refuses a step."""
        wait = None if minutes is None else timedelta(minutes=minutes)
        self.world.issuer.faults.fail(operation, unavailable(reason, wait))

    @rule(operation=st.sampled_from(DNS_OPERATIONS), lost=st.booleans())
    def dns_fault(self, operation: str, lost: bool) -> None:
        """The DNS provider is away, or its answers get lost."""
        faults = self.world.solver.faults
        (faults.fail_after if lost else faults.fail)(operation, unavailable(Reason.DNS_UNAVAILABLE))

    @rule(operation=st.sampled_from(STORE_OPERATIONS), audit=st.booleans(), times=st.integers(1, 5))
    def store_fault(self, operation: str, audit: bool, times: int) -> None:
        """The disk is full for a while."""
        reason = Reason.AUDIT_UNAVAILABLE if audit else Reason.STORE_UNAVAILABLE
        self.world.database.faults.fail(operation, unavailable(reason), times=times)

    @rule(down=st.booleans())
    def audit_outage(self, down: bool) -> None:
        """Events can't be written, or can again."""
        self.world.database.audit_down = down

    @rule(slow=st.booleans(), handed_back=st.booleans(), ready=st.booleans())
    def other_ca(self, slow: bool, handed_back: bool, ready: bool) -> None:
        """The CA changes its ways."""
        ca = self.world.ca
        ca.slow, ca.reuses_pending, ca.reuses_authorizations = slow, handed_back, ready
        if not slow:
            ca.complete()

    @precondition(lambda self: self.world.ca.orders)
    @rule(data=st.data(), forget=st.booleans())
    def ca_gives_up(self, data: st.DataObject, forget: bool) -> None:
        """The CA loses an order, or lets it expire."""
        url = data.draw(st.sampled_from(sorted(self.world.ca.orders)))
        self.ca_gave_up = True
        if forget:
            ca_order = self.world.ca.orders[url]
            self.world.ca.forget(url)
            gone = f"{url}/gone"
            while gone in self.world.ca.orders:
                gone += "+"
            self.world.ca.orders[gone] = ca_order  # what it did stays on the CA's books
            self.world.ca.set_status(gone, IssuerOrderStatus.INVALID)
        else:
            self.world.ca.set_status(url, IssuerOrderStatus.INVALID)

    @rule(gone=st.booleans(), ticks=ticks)
    def reload(self, gone: bool, ticks: int) -> None:
        """An operator takes the profile away, or gives it back."""
        self.world.policies.policy = policy(shop=None) if gone else policy()
        self.run(settle(ticks))

    @rule(minutes=st.sampled_from((0.1, 1, 5, 20, 60 * 24 * 70)), ticks=ticks)
    def time_passes(self, minutes: float, ticks: int) -> None:
        """A moment, or so long that certificates are due."""
        self.run(settle(ticks))
        self.world.clock.advance(timedelta(minutes=minutes))
        self.run(settle(ticks))

    @rule(compromised=st.booleans(), ticks=ticks)
    def revoke(self, compromised: bool, ticks: int) -> None:
        """A host gives its latest certificate up."""
        for record in list(self.world.database.certificates.values())[-1:]:
            reason = RevocationReason.KEY_COMPROMISE if compromised else RevocationReason.SUPERSEDED
            work = self.authority.revoke(caller(record.identity), "r", record.certificate_id, reason)
            self.calls.append(self.loop.create_task(work))
        self.run(settle(ticks))

    @rule(ticks=ticks)
    def power_cut(self, ticks: int) -> None:
        """The broker dies where it stands, and starts again on what is on disk."""
        survived = self.world.fork()
        self.run(self._end_calls())
        self.run(kill_all())
        self.world = survived
        self.authority = self.run(self.world.started())
        self.run(settle(ticks))

    @rule(ticks=ticks)
    def restart(self, ticks: int) -> None:
        """The broker is stopped in an orderly way, and starts again."""

        async def stop() -> None:
            draining = asyncio.create_task(self.authority.drain(timedelta(seconds=10)))
            while not draining.done():
                await settle(40)
                self.world.clock.advance(timedelta(seconds=5))
            await draining

        self.run(stop())
        self.run(self._end_calls())
        self.run(kill_all())
        self.authority = self.run(self.world.started())
        self.run(settle(ticks))

    @invariant()
    def no_order_is_finalised_twice(self) -> None:
        """Neither at the CA nor by way of a second ACME order for the same order."""
        world = self.world
        assert all(order.finalisations <= 1 for order in world.ca.orders.values())
        sent = Counter(order.csr_der for order in world.ca.orders.values() if order.finalisations)
        keys_of_csrs = {order.csr_der: order.public_key_sha256 for order in world.orders}
        wanted = Counter(order.public_key_sha256 for order in world.orders)
        for csr_der, count in sent.items():
            assert count <= wanted[keys_of_csrs[csr_der]]

    @invariant()
    def nothing_is_unlogged(self) -> None:
        """Every order was authorised on record, every certificate issued on record, every hand-out delivered on record."""
        events = self.world.database.events
        logged = {(event.event_type, event.order_id) for event in events}
        delivered = {
            event.certificate_id
            for event in events
            if event.event_type in (AuditEventType.CERTIFICATE_DELIVERED, AuditEventType.CERTIFICATE_CACHE_HIT)
        }
        for order in self.world.orders:
            assert (AuditEventType.CERTIFICATE_AUTHORIZED, order.order_id) in logged
            if order.state is OrderState.ISSUED:
                assert (AuditEventType.CERTIFICATE_ISSUED, order.order_id) in logged
            if order.state is OrderState.FAILED:
                assert (AuditEventType.CERTIFICATE_ISSUE_FAILED, order.order_id) in logged
        for record in self.world.database.certificates.values():
            assert record.deliver_time is None or record.certificate_id in delivered
        for call in self.calls:
            if call.done() and not call.cancelled() and call.exception() is None:
                certificate = getattr(call.result(), "certificate", None)
                assert certificate is None or certificate.certificate_id in delivered

    @invariant()
    def calls_end_with_an_answer_or_a_typed_refusal(self) -> None:
        """No other error ever reaches a caller."""
        for call in self.calls:
            if call.done() and not call.cancelled():
                assert isinstance(call.exception(), RefusalError | None)

    @invariant()
    def equal_requests_share_their_open_order(self) -> None:
        """There is at most one open order of a key."""
        still_open = Counter(order.key for order in self.world.orders if order.state.is_open)
        assert all(count == 1 for count in still_open.values())

    @invariant()
    def orders_that_ended_are_whole(self) -> None:
        """ISSUED has its certificate, FAILED says why and until when."""
        for order in self.world.orders:
            assert order.state.is_open or ended(order)
            if order.state is OrderState.ISSUED:
                record = self.world.database.certificates[order.certificate_id]
                assert (record.order_id, record.public_key_sha256) == (order.order_id, order.public_key_sha256)

    def teardown(self) -> None:
        """Once everything works again, every order ends, what the CA issued is stored, and no record is left."""
        try:
            self.world.database.audit_down = False
            for faults in (self.world.issuer.faults, self.world.solver.faults, self.world.database.faults):
                faults.heal()
            self.world.ca.slow = False
            self.world.ca.complete()
            self.run(self.world.run_on(turns=2000))
            self.run(self._end_calls())
            self.run(kill_all())
            self.authority = self.run(self.world.started())
            self.run(settle())
            assert not self.world.dns.records
            assert all(not order.txt_records for order in self.world.orders)
            if not self.ca_gave_up:
                self._everything_issued_is_stored()
            self.no_order_is_finalised_twice()
            self.nothing_is_unlogged()
        finally:
            self.run(self._end_calls())
            self.run(kill_all())
            self.loop.close()

    def _everything_issued_is_stored(self) -> None:
        """Except what expired before the broker was there again to fetch it: that is worth nothing to anybody."""
        stored = {record.certificate_pem for record in self.world.database.certificates.values()}
        issued = set(self.world.ca.issued)
        valid = {pem for pem in issued if leaf_facts(pem).not_after > self.world.clock.now()}
        assert valid <= stored <= issued

    async def _end_calls(self) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        self.calls.clear()


OrderLife.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestOrderLife = OrderLife.TestCase
