"""Requests that are refused: nothing reaches the CA or the DNS, no order is made, and each is audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditDecision, AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.commands import IssueCommand
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import Grant, IdentityKind, KeyUse, OrderState, RevocationReason
from certplane.broker.ports import DurableLimits
from certplane.errors import Reason, RefusalError
from tests.fakes.policy import FakePolicy
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, key_hash, policy, settle


async def refused(authority: RegistrationAuthority, command: IssueCommand, host: str = "web1.test") -> RefusalError:
    """The refusal that the command meets."""
    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(host), command)
    return caught.value


def nothing_was_done(world: World) -> bool:
    """Whether the CA, the DNS and the orders are untouched."""
    return not (world.issuer.faults.calls or world.solver.faults.calls or world.orders)


def blocked(world: World) -> None:
    world.database.put_key(key_hash(), KeyUse("web1.test", blocked=True))


def anothers(world: World) -> None:
    world.database.put_key(key_hash(), KeyUse("web2.test", blocked=False))


def accounts(world: World) -> None:
    world.settings = IssuanceSettings(account_keys_sha256=frozenset({key_hash()}))


def as_it_is(world: World) -> None:
    pass


def no_shop(world: World) -> None:
    world.policies.policy = policy(shop=None)


def no_p256(world: World) -> None:
    world.change_profile(key_types=("rsa-2048",))


def contested(world: World) -> None:
    world.contest()


def stranger(world: World) -> None:
    world.policies.policy = policy(hosts=("web2.test",))


@pytest.mark.parametrize(
    ("prepare", "command", "reason"),
    [
        pytest.param(as_it_is, issue(csr_pem="no CSR"), Reason.CSR_INVALID, id="unreadable-csr"),
        pytest.param(as_it_is, issue(csr_pem=csr() + csr()), Reason.CSR_INVALID, id="two-csrs"),
        pytest.param(as_it_is, issue(profile="nowhere"), Reason.PROFILE_NOT_ALLOWED, id="unknown-profile"),
        pytest.param(no_shop, issue(), Reason.PROFILE_NOT_ALLOWED, id="profile-gone"),
        pytest.param(stranger, issue(), Reason.IDENTITY_UNKNOWN, id="identity-gone"),
        pytest.param(as_it_is, issue(csr_pem=csr("one", ("*.shop.test",))), Reason.NAMES_NOT_ALLOWED, id="fewer-names"),
        pytest.param(
            as_it_is,
            issue(csr_pem=csr("one", ("*.shop.test", "shop.test", "evil.test"))),
            Reason.NAMES_NOT_ALLOWED,
            id="extra-name",
        ),
        pytest.param(no_p256, issue(), Reason.KEY_WEAK, id="kind-of-key"),
        pytest.param(blocked, issue(), Reason.KEY_REUSED, id="blocked-key"),
        pytest.param(anothers, issue(), Reason.KEY_REUSED, id="another-identitys-key"),
        pytest.param(accounts, issue(), Reason.KEY_REUSED, id="the-acme-accounts-key"),
        pytest.param(contested, issue(), Reason.IDENTITY_CONTESTED, id="contested-identity"),
        pytest.param(as_it_is, issue(replaces="gone"), Reason.CERTIFICATE_NOT_FOUND, id="replaced-is-unknown"),
    ],
)
async def test_a_refused_request_makes_no_order_and_is_audited(
    prepare: Callable[[World], None], command: IssueCommand, reason: Reason
) -> None:
    """The refusal says why, one denial is on record, and nothing outside was touched."""
    world = World()
    prepare(world)
    authority = await world.started()

    error = await refused(authority, command)

    assert error.refusal.reason is reason
    assert nothing_was_done(world)
    (event,) = world.database.events
    assert event.event_type is AuditEventType.CERTIFICATE_DENIED
    assert (event.decision, event.reason_code) == (AuditDecision.DENY, reason.value)
    assert (event.identity, event.source_ip, event.user_agent) == ("web1.test", "192.0.2.7", "test/1")
    assert len(event.csr_sha256) == 64
    assert world.meter.total(metrics.REQUESTS, result=reason.value) == 1


async def test_a_contested_identity_keeps_what_it_has() -> None:
    """Its certificates are handed out as ever, from the cache and by id; a renewal is a new order, and refused."""
    world = World()
    authority = await world.started()
    issued = await authority.issue(caller(), issue())
    world.contest()
    assert issued.certificate is not None

    again = await authority.issue(caller(), issue())
    asked = await authority.get_order(caller(), "req-2", issued.order.order_id)
    shown = await authority.get_certificate(caller(), "req-3", issued.certificate.certificate_id)
    error = await refused(authority, issue("two", replaces=issued.certificate.certificate_id))

    assert again.source == "cache"
    assert again.certificate is not None
    assert asked.certificate is not None
    handed_out = {again.certificate.serial_number, asked.certificate.serial_number, shown.serial_number}
    assert handed_out == {issued.certificate.serial_number}
    assert error.refusal.reason is Reason.IDENTITY_CONTESTED
    assert len(world.orders) == 1
    settled = world.database.identities["web1.test"]
    world.database.put_identity(replace(settled, contest=None))
    assert (await authority.issue(caller(), issue("two"))).order.state is OrderState.ISSUED


async def test_an_order_under_way_is_joined_and_ends_with_the_contest() -> None:
    """It is no new order; whose key it has nobody knows, so it isn't finalised, and nothing holds up a later one."""
    world = World()
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.contest()

    joined = await authority.issue(caller(), issue(wait=NO_WAIT))
    gate.set()
    await world.run_on()

    assert joined.order.order_id == world.order.order_id
    assert world.order.error is not None
    assert world.order.error.reason is Reason.IDENTITY_CONTESTED
    assert world.issuer.faults.count("finalize") == 0


async def test_a_contest_is_no_concern_of_a_service() -> None:
    """An identity that policy has made a service since isn't held to what it was as a host."""
    world = World()
    world.contest()
    world.policies.policy = FakePolicy.of(
        [Grant("web1.test", IdentityKind.SERVICE, "web1", ("shop",))], list(world.policies.policy.profiles.values())
    )
    authority = await world.started()
    service = replace(caller(), kind=IdentityKind.SERVICE)
    assert (await authority.issue(service, issue())).order.state is OrderState.ISSUED


async def test_a_profile_that_is_anothers_and_one_that_does_not_exist_read_the_same() -> None:
    """Nobody can list the policy by asking."""
    world = World()
    authority = await world.started()
    world.policies.policy = policy(hosts=("web2.test",))

    texts = {
        (await refused(authority, issue(profile="nowhere"))).refusal.message,
        (await refused(authority, issue())).refusal.message,
        (await refused(authority, issue(profile="nowhere"), "web2.test")).refusal.message,
    }

    assert len(texts) == 1


async def test_a_key_of_an_order_under_way_is_its_identitys() -> None:
    """Two hosts that ask with one key: the second is refused, whichever check sees it first."""
    world = World()
    world.issuer.faults.hold("create_order")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))

    error = await refused(authority, issue(wait=NO_WAIT), "web2.test")

    assert error.refusal.reason is Reason.KEY_REUSED
    assert len(world.orders) == 1


@pytest.mark.parametrize(
    ("limits", "names", "limit"),
    [
        pytest.param(
            DurableLimits(per_identity_per_hour=2), ("two", "three"), "per_identity_per_hour", id="per-identity"
        ),
        pytest.param(
            DurableLimits(per_identity_profile_per_hour=2),
            ("two", "three"),
            "per_identity_profile_per_hour",
            id="per-identity-and-profile",
        ),
        pytest.param(
            DurableLimits(new_keys_per_identity_profile_per_day=2),
            ("two", "three"),
            "new_keys_per_identity_profile_per_day",
            id="new-keys",
        ),
    ],
)
async def test_a_durable_limit_refuses_new_orders_alone(
    limits: DurableLimits, names: tuple[str, ...], limit: str
) -> None:
    """Beyond the limit a new order is refused with the limit's name and when to come back; the cache still answers."""
    world = World(settings=IssuanceSettings(limits=limits))
    authority = await world.started()
    await authority.issue(caller(), issue())
    await authority.issue(caller(), issue(names[0]))
    await settle()

    error = await refused(authority, issue(names[1]))

    assert error.refusal.reason is Reason.RATE_LIMITED
    assert [violation.subject for violation in error.refusal.violations] == [limit]
    assert error.refusal.retry_after is not None
    assert error.refusal.retry_after > timedelta()
    assert world.database.events[-1].reason_code == "RATE_LIMITED"
    assert (await authority.issue(caller(), issue())).source == "cache"
    world.clock.advance(error.refusal.retry_after)
    assert (await authority.issue(caller(), issue(names[1]))).order.state is OrderState.ISSUED


async def test_a_refused_new_order_does_not_disturb_a_running_one() -> None:
    """A refusal on the way into the order store reaches its caller and nobody else."""
    world = World(settings=IssuanceSettings(limits=DurableLimits(per_identity_per_hour=1)))
    gate = world.issuer.faults.hold("finalize")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    assert (await refused(authority, issue("two"))).refusal.reason is Reason.RATE_LIMITED

    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED


async def test_a_compromised_key_is_refused_for_everybody_from_then_on() -> None:
    """Revoking for keyCompromise takes the certificate out of the cache and blocks its key."""
    world = World()
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    await authority.revoke(caller(), "r", result.certificate.certificate_id, RevocationReason.KEY_COMPROMISE)

    for host in ("web1.test", "web2.test"):
        assert (await refused(authority, issue(), host)).refusal.reason is Reason.KEY_REUSED


async def test_a_callers_long_words_are_cut_in_the_audit_log() -> None:
    """What nobody has checked doesn't fill the log."""
    world = World()
    authority = await world.started()

    await refused(authority, issue(profile="p" * 60_000))

    assert len(world.database.events[0].profile_name) == 100


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        pytest.param("policy", Reason.POLICY_UNAVAILABLE, id="no-policy"),
        pytest.param("store", Reason.STORE_UNAVAILABLE, id="store-away"),
    ],
)
async def test_what_was_not_decided_is_no_denial(break_it: str, reason: Reason) -> None:
    """UNAVAILABLE is not a decision about the caller: it is not audited as one, and asking again may succeed."""
    world = World()
    authority = await world.started()
    if break_it == "policy":
        world.policies.policy = None
    else:
        world.database.down = True

    assert (await refused(authority, issue())).refusal.reason is reason
    assert world.denials.events == []

    world.policies.policy = policy()
    world.database.down = False
    assert (await authority.issue(caller(), issue())).order.state is OrderState.ISSUED
