"""A decision that is asked again is asked whole: whatever ends an identity's right ends its orders and hand-outs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.compromised import CompromisedKeys
from certplane.broker.model import DenyEntry, KeyUse, OrderState, RevocationReason
from certplane.errors import Reason, RefusalError
from tests.fakes.policy import FakePolicy
from tests.support.issuance import NO_WAIT, World, caller, issue, key_hash, settle, unavailable

SECOND = timedelta(seconds=1)
HOST = "web1.test"


def deny_by_name(world: World) -> None:
    """As another process does it: the rows change, and nobody here is told."""
    _deny(world, DenyEntry(name=HOST))


def deny_by_serial(world: World) -> None:
    _deny(world, DenyEntry(issuer="CN=Test CA", serial_number="a1"))


def _deny(world: World, entry: DenyEntry) -> None:
    world.database.deny(entry)


def deny_in_memory_alone(world: World) -> None:
    """The entry is seen before the orders that it ended are."""
    world.database.shut_out(DenyEntry(name=HOST))


def remove_ca(world: World) -> None:
    world.anchors.clear()


def contest(world: World) -> None:
    world.contest()


def take_profile(world: World) -> None:
    world.policies.policy = FakePolicy.of([], [])


def block_key(world: World) -> None:
    world.database.put_key(key_hash(), KeyUse(HOST, blocked=True))


def spend_key(world: World) -> None:
    world.database.put_key(key_hash(), KeyUse(HOST, blocked=False, spent=True))


ENDS = [
    pytest.param(deny_by_name, Reason.IDENTITY_REVOKED, id="denied-by-name"),
    pytest.param(deny_by_serial, Reason.IDENTITY_REVOKED, id="denied-by-issuer-and-serial"),
    pytest.param(deny_in_memory_alone, Reason.IDENTITY_REVOKED, id="denied-and-the-order-still-open"),
    pytest.param(remove_ca, Reason.IDENTITY_UNKNOWN, id="its-ca-is-no-longer-trusted"),
    pytest.param(contest, Reason.IDENTITY_CONTESTED, id="contested"),
    pytest.param(take_profile, Reason.IDENTITY_UNKNOWN, id="policy"),
    pytest.param(block_key, Reason.KEY_REUSED, id="key-blocked"),
    pytest.param(spend_key, Reason.KEY_REUSED, id="key-spent"),
]
PLACES = ["create_order", "get_order", "present", "wait_until_visible", "answer_challenges"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("end", "reason"), ENDS)
async def test_nothing_is_finalised_for_whom_it_may_not_be(
    end: Callable[[World], None], reason: Reason, place: str
) -> None:
    """Wherever an order is when its identity loses what it rests on, it ends for that reason, and no CSR is sent."""
    world = World()
    if place == "get_order":
        world.issuer.faults.fail_after("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "lost"))
    faults = world.issuer.faults if place.endswith(("order", "challenges")) else world.solver.faults
    gate = faults.hold(place)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    end(world)
    gate.set()
    await world.run_on(step=SECOND)

    assert world.order.error is not None
    assert world.order.error.reason is reason
    assert world.issuer.faults.count("finalize") == 0
    assert world.ca.finalisations == 0
    assert world.order.txt_records == ()
    assert world.logged(AuditEventType.CERTIFICATE_ISSUE_FAILED) == 1


@pytest.mark.parametrize(("end", "reason"), ENDS)
async def test_a_restart_asks_again_before_the_ca_hears_of_the_order(
    end: Callable[[World], None], reason: Reason
) -> None:
    """An order that a stop has parked is resumed only if all of it still stands."""
    world = World()
    world.solver.faults.hold("wait_until_visible")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert world.order.state is OrderState.VALIDATING
    other = world.fork()
    end(other)
    if end is remove_ca:
        other.anchors.clear()

    await other.started()
    await other.run_on(step=SECOND)

    assert other.order.error is not None
    assert other.order.error.reason is reason
    assert other.issuer.faults.calls == []


@pytest.mark.parametrize("end", [deny_by_name, deny_by_serial])
async def test_deny_stops_an_order_that_waits(end: Callable[[World], None]) -> None:
    """It isn't waited for until DNS has its turn: within seconds it has ended, its records are gone, and who waits knows."""
    world = World()
    world.solver.faults.hold("wait_until_visible")
    authority = await world.started()
    result = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    end(world)
    world.clock.advance(SECOND)
    await settle()

    assert world.order.state is OrderState.FAILED
    assert world.order.txt_records == ()
    assert world.dns.records == {}
    assert (await authority.get_order(caller(), "req-2", result.order.order_id)).order.state is OrderState.FAILED
    assert len(authority._dispatcher.flights) == 0


async def test_deny_ends_an_order_that_waits_for_its_turn() -> None:
    """Behind another one of the same names, which may take long and goes on."""
    world = World()
    world.solver.faults.hold("wait_until_visible")
    authority = await world.started()
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    await settle()
    waiting = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    deny_by_name(world)
    world.clock.advance(SECOND)
    await settle()

    first, second = world.orders
    assert first.state is OrderState.VALIDATING
    assert second.state is OrderState.FAILED
    assert authority._dispatcher.flights.find(waiting.order.order_id) is None


async def test_a_stop_parks_an_order_that_a_deny_has_just_stopped() -> None:
    """The next start finds it ended; nothing is torn between the two."""
    world = World()
    world.solver.faults.hold("wait_until_visible")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    deny_by_name(world)
    world.clock.advance(SECOND)
    draining = asyncio.ensure_future(authority.drain(SECOND))
    for _ in range(20):
        await settle()
        world.clock.advance(SECOND)
    await draining
    other = world.fork()
    await other.started()
    await other.run_on(step=SECOND)
    assert other.order.state is OrderState.FAILED
    assert other.order.txt_records == ()


async def test_an_order_of_an_older_release_is_known_by_its_serial_number() -> None:
    """Whose issuer wasn't kept: an entry with its serial number is enough."""
    world = World()
    gate = world.solver.faults.hold("wait_until_visible")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    other = world.fork()
    order = replace(other.order, identity_issuer="", identity_anchor="")
    other.database.put_order(order)
    other.database.shut_out(DenyEntry(issuer="CN=Test CA", serial_number="a1"))
    gate.set()

    await other.started()
    await other.run_on(step=SECOND)

    assert other.order.error is not None
    assert other.order.error.reason is Reason.IDENTITY_REVOKED


async def test_what_the_ca_may_have_issued_is_followed_to_its_end() -> None:
    """An order that is finalised when its identity is shut out is stored, to be revoked, and never handed out."""
    world = World()
    gate = world.issuer.faults.hold("download")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert world.order.state is OrderState.FINALIZING

    deny_by_name(world)
    world.clock.advance(SECOND)
    await settle()
    gate.set()
    await world.run_on(step=SECOND)

    assert world.order.state is OrderState.ISSUED
    for ask in (authority.get_order(caller(), "req-2", world.order.order_id), authority.issue(caller(), issue())):
        with pytest.raises(RefusalError) as caught:
            await ask
        assert caught.value.refusal.reason is Reason.IDENTITY_REVOKED
    assert world.logged(AuditEventType.CERTIFICATE_DELIVERED) == 0


async def _issue(authority: RegistrationAuthority, _order: str, _certificate: str) -> object:
    return await authority.issue(caller(), issue())


async def _get(authority: RegistrationAuthority, order: str, _certificate: str) -> object:
    return await authority.get_order(caller(), "req-2", order)


async def _watch(authority: RegistrationAuthority, order: str, _certificate: str) -> object:
    return [state async for state in authority.watch_order(caller(), "req-2", order)]


async def _show(authority: RegistrationAuthority, _order: str, certificate: str) -> object:
    return await authority.get_certificate(caller(), "req-2", certificate)


@pytest.mark.parametrize("ask", [_issue, _get, _watch, _show])
@pytest.mark.parametrize(("end", "reason"), [each for each in ENDS if each.values[0] is not spend_key])
async def test_no_hand_out_to_whom_it_may_not_be(
    end: Callable[[World], None],
    reason: Reason,
    ask: Callable[[RegistrationAuthority, str, str], object],
) -> None:
    """By whichever call a certificate that nobody has got yet is asked for."""
    world = World()
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert world.order.state is OrderState.ISSUED
    end(world)

    with pytest.raises(RefusalError) as caught:
        await ask(authority, world.order.order_id, world.order.certificate_id)  # type: ignore[misc]  # each is async

    assert caught.value.refusal.reason is reason
    assert world.database.certificates[world.order.certificate_id].deliver_time is None


@pytest.mark.parametrize("reason", list(RevocationReason))
async def test_a_revoked_certificates_key_is_spent_for_its_holder(reason: RevocationReason) -> None:
    """Whatever the reason: the same key gets no second certificate, neither anew nor as a renewal; another one does."""
    world = World()
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    await authority.revoke(caller(), "req-2", result.certificate.certificate_id, reason)

    for command in (issue(), issue(replaces=result.certificate.certificate_id)):
        with pytest.raises(RefusalError) as caught:
            await authority.issue(caller(), command)
        assert caught.value.refusal.reason is Reason.KEY_REUSED
    assert len(world.orders) == 1
    again = await authority.issue(caller(), issue("two", replaces=result.certificate.certificate_id))
    assert again.order.state is OrderState.ISSUED


async def test_a_key_that_is_spent_keeps_its_other_certificates() -> None:
    """Where a renewal kept the key, revoking the old certificate takes nothing from the one in use."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(first.certificate.renew_time - world.clock.now())
    second = await authority.issue(caller(), issue(replaces=first.certificate.certificate_id))
    assert second.certificate is not None
    await authority.revoke(caller(), "req-2", first.certificate.certificate_id, RevocationReason.SUPERSEDED)

    shown = await authority.get_certificate(caller(), "req-3", second.certificate.certificate_id)
    assert shown.serial_number == second.certificate.serial_number


async def test_a_rollout_revokes_what_it_has_replaced_and_no_other_certificate_of_the_key() -> None:
    """Another of a compromised key may be in use: it is revoked when it is replaced itself. The key is blocked at once."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(first.certificate.renew_time - world.clock.now())
    old = first.certificate.certificate_id
    second = await authority.issue(caller(), issue(replaces=old))
    assert second.certificate is not None

    reason = RevocationReason.KEY_COMPROMISE
    for _ in range(2):  # asked again, as after a kill, nothing more happens
        await authority.revoke_replaced("r-1", "alice.test", old, reason, "replaced: ticket 7")

    assert world.database.certificates[old].revocation_reason is reason
    assert world.database.certificates[second.certificate.certificate_id].revoke_time is None
    assert world.database.keys[second.certificate.public_key_sha256].blocked
    assert world.logged(AuditEventType.CERTIFICATE_REVOKED) == 1
    event = world.database.events[-1]
    assert (event.event_type, event.identity, event.rollout_id, event.reason) == (
        AuditEventType.CERTIFICATE_REVOKED,
        "alice.test",
        "r-1",
        f"of {caller().name}: replaced: ticket 7",
    )


async def test_what_a_ca_issues_of_a_key_that_was_compromised_meanwhile_is_revoked() -> None:
    """Its CSR was sent before, so only the CA ends the order: nobody is given what comes, and it doesn't stay in force."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    old = first.certificate.certificate_id
    world.clock.advance(first.certificate.renew_time - world.clock.now())
    gate = world.issuer.faults.hold("download")
    await authority.issue(caller(), issue(replaces=old, wait=NO_WAIT))
    await settle()
    await authority.revoke(caller(), "req-2", old, RevocationReason.KEY_COMPROMISE)
    gate.set()
    await world.run_on()
    (late,) = (each for each in world.orders if each.replaces_certificate_id == old)
    new = late.certificate_id
    with pytest.raises(RefusalError) as error:
        await authority.get_certificate(caller(), "req-3", new)
    assert error.value.refusal.reason is Reason.KEY_REUSED
    assert (late.state, world.database.certificates[new].revoke_time) == (OrderState.ISSUED, None)

    world.revoker.faults.fail("revoke", unavailable())
    sweep = CompromisedKeys(world.stores.certificates, authority, world.clock, random.Random(7))
    for _ in range(2):  # the CA is away, and isn't asked again at once
        await sweep.look()
    assert world.database.certificates[new].revoke_time is None
    for _ in range(2):
        world.clock.advance(timedelta(hours=1))
        await sweep.look()

    assert world.database.certificates[new].revocation_reason is RevocationReason.KEY_COMPROMISE
    assert list(world.ca.revoked.values()) == [RevocationReason.KEY_COMPROMISE] * 2
    assert world.logged(AuditEventType.CERTIFICATE_REVOKED) == 2
    assert world.database.events[-1].identity == caller().name


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_compromised_key_takes_its_other_certificates_with_it(cut_off: bool) -> None:
    """Where a renewal kept the key, the certificate in use is as bad as the old one; what is cut off is completed."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(first.certificate.renew_time - world.clock.now())
    second = await authority.issue(caller(), issue(replaces=first.certificate.certificate_id))
    assert second.certificate is not None
    old, new = first.certificate.certificate_id, second.certificate.certificate_id
    assert world.database.certificates[old].public_key_sha256 == world.database.certificates[new].public_key_sha256

    await authority.revoke(caller(), "req-2", old, RevocationReason.SUPERSEDED)
    assert world.database.certificates[new].revoke_time is None
    if cut_off:
        now = world.clock.now()
        await world.stores.certificates.mark_revoked(old, RevocationReason.KEY_COMPROMISE, now, [])
    answer = await authority.revoke(caller(), "req-3", old, RevocationReason.KEY_COMPROMISE)

    assert answer.certificate_id == old
    assert world.database.certificates[new].revocation_reason is RevocationReason.KEY_COMPROMISE
    again = await authority.issue(caller(), issue("two", replaces=new))
    assert again.order.state is OrderState.ISSUED
