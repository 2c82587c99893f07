"""Nothing unlogged: what happens when the audit log can't be written, at each place where it is."""

from __future__ import annotations

import asyncio

import pytest

from certplane.broker.audit.fallback import FailureMode
from certplane.broker.events import AuditEventType
from certplane.broker.model import OrderState, RevocationReason
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, issue, settle

both_modes = pytest.mark.parametrize("mode", ["fail_closed", "fail_open"])


async def unlogged(world: World, mode: FailureMode, *, spilled: int) -> None:
    """Under `fail_closed` nothing was spilled; under `fail_open` exactly these events were."""
    assert len(world.database.spilled) == (spilled if mode == "fail_open" else 0)


@both_modes
async def test_no_order_without_its_authorising_event(mode: FailureMode) -> None:
    """`fail_closed`: UNAVAILABLE, no order, the CA never hears of it. `fail_open`: spilled, and the order is durable."""
    world = World(failure_mode=mode)
    authority = await world.started()
    world.database.audit_down = True

    if mode == "fail_closed":
        with pytest.raises(RefusalError) as caught:
            await authority.issue(caller(), issue())
        assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
        assert not world.orders
        assert not world.issuer.faults.calls
    else:
        result = await authority.issue(caller(), issue())
        assert result.certificate is not None
        assert [event.event_type for event in world.database.spilled] == [
            AuditEventType.CERTIFICATE_REQUEST_RECEIVED,
            AuditEventType.CERTIFICATE_AUTHORIZED,
            AuditEventType.CERTIFICATE_ISSUED,
            AuditEventType.CERTIFICATE_DELIVERED,
        ]
    assert world.database.events == []


@both_modes
async def test_no_certificate_without_its_issuing_event(mode: FailureMode) -> None:
    """`fail_closed`: what the CA issued is kept trying to be stored, unseen, until the log can be written."""
    world = World(failure_mode=mode)
    gate = world.issuer.faults.hold("download")
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    world.database.audit_down = True
    gate.set()
    await settle()

    if mode == "fail_closed":
        assert world.order.state is OrderState.FINALIZING
        assert not world.database.certificates
        assert not call.done()
        world.database.audit_down = False
        await world.run_on()
    assert (await call).certificate is not None
    assert len(world.ca.issued) == 1
    assert world.logged(AuditEventType.CERTIFICATE_ISSUED) == (1 if mode == "fail_closed" else 0)
    await unlogged(world, mode, spilled=2)


@both_modes
@pytest.mark.parametrize("path", ["order", "cache", "get_order", "watch", "get_certificate"])
async def test_no_hand_out_without_its_event(mode: FailureMode, path: str) -> None:
    """`fail_closed`: UNAVAILABLE instead of the certificate, and asking again once the log is back gets it."""
    world = World(failure_mode=mode)
    authority = await world.started()
    gate = world.issuer.faults.hold("download")
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))
    order_id = opened.order.order_id
    waiting = asyncio.create_task(authority.issue(caller(), issue())) if path == "order" else None
    await settle()
    if waiting is not None:
        # The order is stored with its event, and only then the log fails: the hand-out is what can't be recorded.
        world.database.faults.hold("mark_delivered")
    gate.set()
    await settle()
    world.database.audit_down = True

    async def ask() -> object:
        match path:
            case "order":
                assert waiting is not None
                world.database.faults.heal()
                return (await waiting).certificate
            case "cache":
                return (await authority.issue(caller(), issue())).certificate
            case "get_order":
                return (await authority.get_order(caller(), "g", order_id)).certificate
            case "watch":
                return [result.certificate async for result in authority.watch_order(caller(), "w", order_id)][-1]
            case _:
                return await authority.get_certificate(caller(), "c", world.order.certificate_id)

    if mode == "fail_open":
        assert await ask() is not None
        assert world.database.spilled
        return
    with pytest.raises(RefusalError) as caught:
        await ask()
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert world.database.certificates[world.order.certificate_id].deliver_time is None
    world.database.audit_down = False
    assert (await authority.issue(caller(), issue())).source == "cache"
    assert len(world.orders) == 1


@both_modes
async def test_a_refusal_that_can_not_be_logged_is_unavailable_under_fail_closed(mode: FailureMode) -> None:
    """A denial is an audited decision like any other."""
    world = World(failure_mode=mode)
    authority = await world.started()
    world.database.audit_down = True

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue(profile="nowhere"))

    expected = Reason.AUDIT_UNAVAILABLE if mode == "fail_closed" else Reason.PROFILE_NOT_ALLOWED
    assert caught.value.refusal.reason is expected
    await unlogged(world, mode, spilled=1)


@both_modes
async def test_a_failed_order_ends_only_with_its_event(mode: FailureMode) -> None:
    """A failure is logged before anybody learns of it."""
    world = World(failure_mode=mode)
    world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_REJECTED, "no"))
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    world.database.audit_down = True
    gate.set()
    await settle()

    if mode == "fail_closed":
        assert world.order.state is OrderState.PENDING
        world.database.audit_down = False
        await world.run_on()
        assert world.logged(AuditEventType.CERTIFICATE_ISSUE_FAILED) == 1
    assert world.order.state is OrderState.FAILED
    await unlogged(world, mode, spilled=1)


@both_modes
async def test_a_revocation_that_can_not_be_logged_is_completed_by_asking_again(mode: FailureMode) -> None:
    """The CA has revoked already; the record follows as soon as it can be logged."""
    world = World(failure_mode=mode)
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    certificate_id = result.certificate.certificate_id

    if mode == "fail_closed":
        world.database.faults.fail("mark_revoked", RefusalError(Reason.AUDIT_UNAVAILABLE, "can't be written"))
        with pytest.raises(RefusalError) as caught:
            await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
        assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
        assert len(world.ca.revoked) == 1
    else:
        world.database.audit_down = True
    record = await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    assert record.revoke_time == world.clock.now()
    assert len(world.ca.revoked) == 1
    await unlogged(world, mode, spilled=2)  # that it was decided, and that it was done


async def test_an_order_that_is_not_durable_is_store_unavailable_even_under_fail_open() -> None:
    """`fail_open` lets an event be lost to a spill file, never an order."""
    world = World(failure_mode="fail_open")
    authority = await world.started()
    world.database.faults.fail("open_order", RefusalError(Reason.STORE_UNAVAILABLE, "disk full"))

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue())

    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert not world.orders
    assert not world.issuer.faults.calls
