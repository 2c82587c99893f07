"""A call on its way in, without a connection: the order of the checks, and what it pays.

That all of it holds on a real connection is tests/integration/test_broker_edge.py's.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditTrail
from certplane.broker.identity.access import Access
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import AdmissionControl, Call
from certplane.broker.identity.allowances import Allowances, AllowanceSettings
from certplane.broker.identity.authentication import Authenticator, Peer
from certplane.broker.identity.denials import Denials
from certplane.broker.model import DenyEntry, Grant, IdentityKind
from certplane.errors import Reason, RefusalError
from certplane.pki.trust_bundle import TrustBundle
from tests.fakes.audit import FakeDenialRecorder
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.ca import PrivateCa
from tests.support.memory_store import MemoryStores

HOST = "web1.example"
ISSUING = Access(frozenset({IdentityKind.HOST}), issuing=True)
OPERATORS = Access(frozenset({IdentityKind.OPERATOR}))


class Door:
    """What decides about calls, two of which an identity has at once."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ca = PrivateCa("internal", now=self.clock.now())
        self.bundle = TrustBundle.from_pem(self.ca.root_pem)
        self.policy = FakePolicySource(FakePolicy.of([Grant(HOST, IdentityKind.HOST, "web1")]))
        self.stores = MemoryStores.open(self.clock)
        trail = AuditTrail(self.clock)
        self.recorder = FakeDenialRecorder()
        self.denials = Denials(self.recorder, trail)
        self.allowances = Allowances(AllowanceSettings(calls_per_second=1, calls_burst=2), self.clock)
        self.control = AdmissionControl(
            authenticator=Authenticator(
                trust=self,
                policy=self.policy,
                deny_list=self.stores.deny_list,
                min_tls_version="1.2",
                provisioners=("jwk",),
                clock=self.clock,
            ),
            first_use=FirstUse(ledger=self.stores.identities, clock=self.clock, trail=trail),
            allowances=self.allowances,
            clock=self.clock,
        )
        self.leaf = self.ca.issue([HOST])

    def call(self, access: Access | None = ISSUING, **changes: Any) -> Call:
        facts: dict[str, Any] = {
            "leaf_pem": self.leaf.certificate_pem,
            "chain_pem": self.leaf.chain_pem,
            "tls_version": "TLSv1.3",
            "session_reused": False,
            "source_ip": "192.0.2.1",
        }
        return Call(self.control, "/x/Y", access, Peer(**{**facts, **changes}), "r-1", is_stream=False)

    async def refused(self, call: Call) -> Reason:
        """Why the call isn't let in; it ends, and is audited as the edge has it."""
        with pytest.raises(RefusalError) as caught:
            await call.enter()
        await self.denials.note(call, caught.value, by_edge=False)
        call.end()
        return caught.value.refusal.reason

    async def deny(self) -> None:
        await self.stores.deny_list.deny(DenyEntry(name=HOST, create_time=self.clock.now()), [])


@pytest.fixture
def door() -> Door:
    return Door()


async def test_a_call_that_is_let_in_has_its_caller_and_leaves_nothing_in_flight(door: Door) -> None:
    """The first use of the certificate is durable before it goes on."""
    call = door.call()
    caller = await call.enter()
    assert (caller.name, call.caller, call.admitted) == (HOST, caller, True)
    known = door.stores.identities.known(HOST)
    assert known is not None
    assert known.active.serial_number == caller.serial_number
    assert door.allowances._calls_in_flight == {HOST: 1}
    call.end()
    assert door.allowances._calls_in_flight == {}


async def test_a_host_that_renews_its_identity_in_a_loop_writes_no_row_each_time(door: Door) -> None:
    """A first use is a durable row of its own: above what any agent does it is refused, and comes in later."""
    door.allowances = Allowances(AllowanceSettings(), door.clock)
    door.control.allowances = door.allowances

    async def renewed() -> Call:
        door.clock.advance(timedelta(seconds=1))
        leaf = door.ca.issue([HOST], not_before=door.clock.now())
        return door.call(leaf_pem=leaf.certificate_pem, chain_pem=leaf.chain_pem)

    events = 0
    for _ in range(100):
        call = await renewed()
        try:
            await call.enter()
        except RefusalError as error:
            refusal = error.refusal
            await door.denials.note(call, error, by_edge=False)
        else:
            events += 1
        call.end()
    assert events == 61, "60 at once, and one in the minute and a half"
    assert [each.subject for each in refusal.violations] == ["identity_certificates_per_identity"]
    assert refusal.retry_after is not None
    door.clock.advance(refusal.retry_after)
    await (await renewed()).enter()


REFUSED: dict[str, tuple[Callable[[Door], Call], Reason]] = {
    "no certificate": (lambda door: door.call(leaf_pem=b"", chain_pem=b""), Reason.IDENTITY_UNKNOWN),
    "a method of operators": (lambda door: door.call(OPERATORS), Reason.ROLE_REQUIRED),
    "a method without a row": (lambda door: door.call(None), Reason.ROLE_REQUIRED),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_whoever_is_refused_is_audited_pays_for_it_and_is_soon_told_no_more(door: Door, name: str) -> None:
    """Strangers by their certificate and address, identities by their name; the last refusal isn't a decision on them."""
    make, reason = REFUSED[name]
    assert [await door.refused(make(door)) for _ in range(3)] == [reason, reason, Reason.RATE_LIMITED]
    assert [event.reason_code for event in door.recorder.events][:2] == [reason, reason]
    assert door.allowances._calls_in_flight == {}


async def test_a_denied_identity_makes_no_first_use(door: Door) -> None:
    """The deny-list is asked before anything is written for a caller."""
    await door.deny()
    assert await door.refused(door.call()) is Reason.IDENTITY_REVOKED
    assert door.stores.identities.known(HOST) is None


async def test_only_calls_that_may_start_an_order_are_refused_while_draining(door: Door) -> None:
    """With when to come back."""
    door.control.draining = timedelta(seconds=7)
    with pytest.raises(RefusalError) as caught:
        await door.call().enter()
    assert (caught.value.refusal.reason, caught.value.refusal.retry_after) == (Reason.DRAINING, timedelta(seconds=7))
    await door.call(Access(frozenset({IdentityKind.HOST}))).enter()


async def test_an_open_call_is_checked_against_what_holds_now(door: Door) -> None:
    """Of another kind by policy, unknown to it, denied: each with its own reason; unchanged, it stands."""
    call = door.call()
    await call.enter()
    call.check_again()
    door.policy.policy = FakePolicy.of([Grant(HOST, IdentityKind.OPERATOR, "web1")])
    with pytest.raises(RefusalError, match="only hosts may call"):
        call.check_again()
    door.policy.policy = FakePolicy.of([])
    with pytest.raises(RefusalError, match="not one known identity"):
        call.check_again()
    door.policy.policy = FakePolicy.of([Grant(HOST, IdentityKind.HOST, "web1")])
    call.check_again()
    await door.deny()
    with pytest.raises(RefusalError) as caught:
        call.check_again()
    assert caught.value.refusal.reason is Reason.IDENTITY_REVOKED


async def test_who_calls_too_often_is_told_slowly(door: Door) -> None:
    """No more often than it may call; any other refusal is told at once."""
    call = door.call()
    await call.enter()
    limited = RefusalError(Reason.RATE_LIMITED, "slow down")
    await call.hold_back(limited, None)  # what the story limits, it has limited itself
    turned_away = door.call()
    await turned_away.hold_back(RefusalError(Reason.IDENTITY_UNKNOWN, "who"), None)
    waiting = asyncio.create_task(turned_away.hold_back(limited, None))
    await asyncio.sleep(0)
    assert not waiting.done()
    door.clock.advance(timedelta(seconds=1))
    await waiting


async def test_an_ended_call_holds_no_policy() -> None:
    """Tasks that it began, such as an order's, have it in their context for hours; a policy may take 100 MB."""
    door = Door()
    call = door.call()
    await call.enter()
    call.end()
    door.policy.policy, old = FakePolicy.of([Grant(HOST, IdentityKind.HOST, "web1")]), weakref.ref(door.policy.policy)  # type: ignore[arg-type] # it isn't None
    await door.call().enter()

    gc.collect()
    assert call.caller is not None
    assert old() is None
