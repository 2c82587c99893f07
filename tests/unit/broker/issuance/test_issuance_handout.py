"""Showing, handing out and revoking: own things only, under the policy of that moment, each on record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.model import IdentityKind, OrderCause, RevocationReason
from certplane.broker.ports import CertificateQuery
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, policy, settle, unavailable


async def issued(world: World) -> tuple[RegistrationAuthority, str, str]:
    """A running authority with one ISSUED order; its id and its certificate's."""
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    await settle()
    assert result.certificate is not None
    return authority, result.order.order_id, result.certificate.certificate_id


async def watch(authority: RegistrationAuthority, host: str, order_id: str) -> None:
    async for _ in authority.watch_order(caller(host), "w", order_id):
        pass


Ask = Callable[[RegistrationAuthority, str, str, str], Awaitable[object]]

ASKS: dict[str, tuple[Ask, Reason]] = {
    "get_order": (
        lambda authority, host, order, certificate: authority.get_order(caller(host), "g", order),
        Reason.ORDER_NOT_FOUND,
    ),
    "watch_order": (
        lambda authority, host, order, certificate: watch(authority, host, order),
        Reason.ORDER_NOT_FOUND,
    ),
    "get_certificate": (
        lambda authority, host, order, certificate: authority.get_certificate(caller(host), "c", certificate),
        Reason.CERTIFICATE_NOT_FOUND,
    ),
    "revoke": (
        lambda authority, host, order, certificate: authority.revoke(
            caller(host), "r", certificate, RevocationReason.UNSPECIFIED
        ),
        Reason.CERTIFICATE_NOT_FOUND,
    ),
}


@pytest.mark.parametrize("name", ASKS)
async def test_what_is_anothers_and_what_does_not_exist_read_the_same_and_are_audited(name: str) -> None:
    """NOT_FOUND with one message for both; the attempt is on record with what was asked for."""
    world = World()
    authority, order_id, certificate_id = await issued(world)
    ask, reason = ASKS[name]

    refusals = []
    for host, order, certificate in (("web2.test", order_id, certificate_id), ("web1.test", "o-404", "c-404")):
        with pytest.raises(RefusalError) as caught:
            await ask(authority, host, order, certificate)
        refusals.append(caught.value.refusal)
        event = world.database.events[-1]
        assert event.event_type is AuditEventType.CERTIFICATE_DENIED
        assert event.identity == host
        assert (order if reason is Reason.ORDER_NOT_FOUND else certificate) in (event.order_id, event.certificate_id)

    assert refusals[0] == refusals[1]
    assert refusals[0].reason is reason
    assert world.revoker.faults.calls == []


@pytest.mark.parametrize("name", ["get_order", "watch_order", "get_certificate"])
async def test_every_hand_out_is_on_record(name: str) -> None:
    """Getting a certificate by its order or its id is a delivery, logged with who, what and under which policy."""
    world = World()
    authority, order_id, certificate_id = await issued(world)
    events = len(world.database.events)

    await ASKS[name][0](authority, "web1.test", order_id, certificate_id)

    (event,) = world.database.events[events:]
    assert event.event_type is AuditEventType.CERTIFICATE_DELIVERED
    assert (event.identity, event.profile_name) == ("web1.test", "shop")
    assert (event.order_id, event.certificate_id) == (order_id, certificate_id)
    assert event.policy_hash == world.policies.current.hash
    assert event.cert_serial_number


@pytest.mark.parametrize("name", ["get_order", "watch_order", "get_certificate"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param("profile gone", Reason.PROFILE_NOT_ALLOWED, id="profile-gone"),
        pytest.param("names changed", Reason.NAMES_NOT_ALLOWED, id="names-changed"),
        pytest.param("host gone", Reason.IDENTITY_UNKNOWN, id="host-gone"),
    ],
)
async def test_policy_is_asked_again_before_each_hand_out(name: str, change: str, reason: Reason) -> None:
    """What policy has taken back is not handed out, although it is stored; the refusal is audited."""
    world = World()
    authority, order_id, certificate_id = await issued(world)
    match change:
        case "profile gone":
            world.policies.policy = policy(shop=None)
        case "names changed":
            world.change_profile(dns_names=("shop.test",))
        case _:
            world.policies.policy = policy(hosts=("web2.test",))

    with pytest.raises(RefusalError) as caught:
        await ASKS[name][0](authority, "web1.test", order_id, certificate_id)

    assert caught.value.refusal.reason is reason
    assert world.database.events[-1].reason_code == reason.value
    assert world.logged(AuditEventType.CERTIFICATE_DELIVERED) == 1


@pytest.mark.parametrize("name", ["get_order", "watch_order", "get_certificate"])
async def test_an_edited_profile_with_the_same_names_takes_nothing_back(name: str) -> None:
    """A stored certificate can still be fetched after a change that concerns new ones only."""
    world = World()
    authority, order_id, certificate_id = await issued(world)
    world.change_profile(hash="other", key_types=("rsa-2048",))

    await ASKS[name][0](authority, "web1.test", order_id, certificate_id)

    assert world.logged(AuditEventType.CERTIFICATE_DELIVERED) == 2


async def test_policy_is_asked_again_before_the_hand_out_of_an_order_that_was_waited_for() -> None:
    """The order may take minutes: policy of the end counts."""
    world = World()
    gate = world.database.faults.hold("finish_order")
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.policies.policy = policy(shop=None)
    gate.set()
    await settle()

    with pytest.raises(RefusalError) as caught:
        await authority.get_order(caller(), "g", opened.order.order_id)

    assert caught.value.refusal.reason is Reason.PROFILE_NOT_ALLOWED
    assert world.database.certificates[world.order.certificate_id].deliver_time is None


async def test_a_reload_while_the_cache_is_asked_counts() -> None:
    """The policy in force at the hand-out decides, not the one at the beginning of the call."""
    world = World()
    authority, _, _ = await issued(world)
    original = world.stores.certificates.find_cached

    async def reload_meanwhile(*args: str) -> object:
        found = await original(*args)
        world.policies.policy = policy(shop=None)
        return found

    world.stores.certificates.find_cached = reload_meanwhile  # type: ignore[assignment,method-assign] # a race, made sure

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue())

    assert caught.value.refusal.reason is Reason.PROFILE_NOT_ALLOWED
    assert world.logged(AuditEventType.CERTIFICATE_CACHE_HIT) == 0


async def test_a_list_has_the_callers_own_certificates_whatever_the_query_says() -> None:
    """The identity of the query is not what decides."""
    world = World()
    authority, _, certificate_id = await issued(world)
    mail = await authority.issue(caller(), issue(csr_pem=csr("mail", ("mail.test",)), profile="mail"))
    assert mail.certificate is not None

    mine = await authority.list_certificates(caller(), CertificateQuery("web2.test"))
    others = await authority.list_certificates(caller("web2.test"), CertificateQuery("web1.test"))
    shop = await authority.list_certificates(caller(), CertificateQuery("", profile="shop"))

    assert [record.certificate_id for record in mine] == [mail.certificate.certificate_id, certificate_id]
    assert list(others) == []
    assert [record.certificate_id for record in shop] == [certificate_id]


async def test_a_revocation_reaches_the_ca_and_the_cache() -> None:
    """The CA has revoked, the record says when and why, the event is durable, and the key is spent."""
    world = World()
    authority, _, certificate_id = await issued(world)

    record = await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    assert (record.revoke_time, record.revocation_reason) == (world.clock.now(), RevocationReason.SUPERSEDED)
    assert list(world.ca.revoked.values()) == [RevocationReason.SUPERSEDED]
    assert world.kinds()[-1] == AuditEventType.CERTIFICATE_REVOKED
    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue())
    assert caught.value.refusal.reason is Reason.KEY_REUSED
    assert (await authority.issue(caller(), issue("two"))).source == "order"


async def test_a_revocation_that_can_not_be_recorded_does_not_reach_the_ca() -> None:
    """The decision is durable before the CA is asked: `fail_closed`, and nothing is revoked unlogged."""
    world = World()
    authority, _, certificate_id = await issued(world)
    world.database.audit_down = True

    with pytest.raises(RefusalError) as caught:
        await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert world.ca.revoked == {}
    world.database.audit_down = False
    await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
    assert world.kinds()[-2:] == [
        AuditEventType.CERTIFICATE_REVOCATION_AUTHORIZED,
        AuditEventType.CERTIFICATE_REVOKED,
    ]


async def test_revoking_again_answers_as_the_first_time_did() -> None:
    """The CA isn't asked again, the time stays, and nothing is logged twice."""
    world = World()
    authority, _, certificate_id = await issued(world)
    first = await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
    world.clock.advance(world.ca.lifetime)

    again = await authority.revoke(caller(), "r", certificate_id, RevocationReason.UNSPECIFIED)

    assert again == first
    assert world.revoker.faults.count("revoke") == 1
    assert world.logged(AuditEventType.CERTIFICATE_REVOKED) == 1


async def test_an_operator_revokes_anybodys_certificate() -> None:
    """The event says who did it, of whom and why; what the holder asks for next is what a revocation wants."""
    world = World()
    authority, _, certificate_id = await issued(world)
    alice = replace(caller("alice.test"), kind=IdentityKind.OPERATOR, profiles=(), roles=("operator",))

    done = await authority.revoke_of_anybody(alice, "r", certificate_id, RevocationReason.SUPERSEDED, "ticket 7")

    assert (done.was_revoked, done.certificate.identity) == (False, caller().name)
    event = world.database.events[-1]
    assert (event.event_type, event.identity) == (AuditEventType.CERTIFICATE_REVOKED, "alice.test")
    assert (event.reason, event.reason_code) == (f"of {caller().name}: ticket 7", "superseded")
    again = await authority.issue(caller(), issue("two", replaces=certificate_id))
    assert again.order.cause is OrderCause.REVOKED


async def test_an_operator_is_told_what_was_revoked_before() -> None:
    """It stays as it is, and nothing is logged twice; what its holder had revoked is an operator's from then on."""
    world = World()
    authority, _, certificate_id = await issued(world)
    alice = replace(caller("alice.test"), kind=IdentityKind.OPERATOR, profiles=(), roles=("operator",))
    await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
    assert world.database.certificates[certificate_id].withdrawn

    for reason in (RevocationReason.UNSPECIFIED, RevocationReason.CESSATION_OF_OPERATION):
        done = await authority.revoke_of_anybody(alice, "r", certificate_id, reason, "ticket 7")
        assert (done.was_revoked, done.certificate.revocation_reason) == (True, RevocationReason.SUPERSEDED)

    assert not world.database.certificates[certificate_id].withdrawn
    assert world.logged(AuditEventType.CERTIFICATE_REVOKED) == 2


async def test_what_an_operator_can_not_revoke_is_refused_and_audited() -> None:
    """Which ids there are is no secret to an operator, and the refusal says where they are found."""
    world = World()
    authority, *_ = await issued(world)
    alice = replace(caller("alice.test"), kind=IdentityKind.OPERATOR, profiles=(), roles=("operator",))

    with pytest.raises(RefusalError, match="there is no such certificate; ListFleetCertificates"):
        await authority.revoke_of_anybody(alice, "r", "nothing", RevocationReason.SUPERSEDED, "ticket 7")

    assert world.kinds()[-1] == AuditEventType.CERTIFICATE_DENIED
    assert world.ca.revoked == {}


async def test_a_key_found_compromised_after_the_revocation_is_blocked_all_the_same() -> None:
    """A compromise is more than another revocation: the key is blocked; the first time stays."""
    world = World()
    authority, _, certificate_id = await issued(world)
    first = await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    again = await authority.revoke(caller(), "r", certificate_id, RevocationReason.KEY_COMPROMISE)

    assert again.revoke_time == first.revoke_time
    use = world.database.keys[again.public_key_sha256]
    assert use.blocked


async def test_a_revocation_that_the_ca_did_not_take_changes_nothing_here() -> None:
    """The error goes to the caller, who asks again; it is no denial."""
    world = World()
    authority, _, certificate_id = await issued(world)
    world.revoker.faults.fail("revoke", unavailable())

    with pytest.raises(RefusalError) as caught:
        await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
    assert world.denials.events == []
    assert world.database.certificates[certificate_id].revoke_time is None
    record = await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
    assert record.revoke_time is not None


async def test_a_certificate_of_a_former_issuer_can_not_be_revoked_through_the_new_one() -> None:
    """The refusal names the issuer; the new CA is not asked about a certificate that isn't its own."""
    world = World()
    _, _, certificate_id = await issued(world)
    world.issuer._name = "other-ca"
    authority = await world.started()

    with pytest.raises(RefusalError, match="fake-ca") as caught:
        await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)

    assert caught.value.refusal.reason is Reason.ISSUER_REJECTED
    assert world.revoker.faults.calls == []


async def test_revoking_needs_no_profile() -> None:
    """Whoever holds a certificate may revoke it, also after policy has taken the profile away."""
    world = World()
    authority, _, certificate_id = await issued(world)
    world.policies.policy = policy(shop=None)

    record = await authority.revoke(caller(), "r", certificate_id, RevocationReason.CESSATION_OF_OPERATION)

    assert record.revoke_time is not None


async def read(authority: RegistrationAuthority, order_id: str) -> None:
    await watch(authority, "web1.test", order_id)


REPEATED: dict[str, Callable[[RegistrationAuthority, str, str], Awaitable[object]]] = {
    "issue, answered from the cache": lambda authority, order, certificate: authority.issue(caller(), issue()),
    "get_order": lambda authority, order, certificate: authority.get_order(caller(), "g", order),
    "watch_order": lambda authority, order, certificate: read(authority, order),
    "get_certificate": lambda authority, order, certificate: authority.get_certificate(caller(), "c", certificate),
}


@pytest.mark.parametrize("name", REPEATED)
async def test_a_certificate_handed_out_again_and_again_is_counted(name: str) -> None:
    """A host within its allowance can't fill the disk; the first hand-out has its event, the others their count."""
    world = World(coalesces=True)
    authority, order_id, certificate_id = await issued(world)
    before = len(world.database.events)

    for _ in range(100):
        await REPEATED[name](authority, order_id, certificate_id)

    written = len(world.database.events) - before
    assert written <= 3
    (counted,) = world.database.counts.values()
    assert counted.certificate_id == certificate_id
    assert counted.count >= 99


async def test_calls_that_join_an_order_again_and_again_are_counted() -> None:
    """So are those that wait for one."""
    world = World(coalesces=True)
    world.issuer.faults.hold("create_order")
    authority = await world.started()
    for _ in range(50):
        await authority.issue(caller(), issue(wait=NO_WAIT))
    assert len(world.database.events) <= 4
    assert [event.count for event in world.database.counts.values()] == [48]


async def test_a_wish_to_revoke_that_the_ca_refuses_again_and_again_is_counted() -> None:
    """Each is on record, as an event or in a count, before the CA is asked."""
    world = World(coalesces=True)
    authority, _, certificate_id = await issued(world)
    world.revoker.faults.fail_always("revoke", unavailable())
    before = len(world.database.events)
    for _ in range(50):
        with pytest.raises(RefusalError):
            await authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED)
    authorised = world.logged(AuditEventType.CERTIFICATE_REVOCATION_AUTHORIZED)
    counted = sum(event.count for event in world.database.counts.values())
    assert (authorised, counted) == (1, 49)
    assert len(world.database.events) - before < 110


async def test_a_counted_hand_out_that_can_not_be_recorded_is_not_made() -> None:
    """`fail_closed` holds for the hundredth as for the first."""
    world = World(coalesces=True)
    authority, _, certificate_id = await issued(world)
    for _ in range(3):
        await authority.get_certificate(caller(), "c", certificate_id)
    world.database.audit_down = True
    with pytest.raises(RefusalError) as caught:
        await authority.get_certificate(caller(), "c", certificate_id)
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
