"""The way of a certificate through the registration authority: first issue, cache, renewal, joining, waiting."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import OrderState, RevocationReason
from certplane.broker.ports import OpenedOrder
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.lifetime import renew_time
from tests.support.issuance import NAMES, NO_WAIT, World, caller, csr, issue, key, key_hash, settle

DAY = timedelta(days=1)


async def first_certificate(world: World, authority: RegistrationAuthority, name: str = "one") -> str:
    """Issue a certificate for the key of this name and let its order end; returns the certificate's id."""
    result = await authority.issue(caller(), issue(name))
    await settle()
    assert result.certificate is not None
    return result.certificate.certificate_id


async def test_a_first_request_ends_with_a_stored_logged_and_delivered_certificate() -> None:
    """An order goes from PENDING to ISSUED, its events are logged in order, and no TXT record is left."""
    world = World()
    authority = await world.started()

    result = await authority.issue(caller(), issue())

    assert result.order.state is OrderState.ISSUED
    assert result.certificate is not None
    assert result.source == "order"
    assert world.kinds() == [
        AuditEventType.CERTIFICATE_REQUEST_RECEIVED,
        AuditEventType.CERTIFICATE_AUTHORIZED,
        AuditEventType.CERTIFICATE_ISSUED,
        AuditEventType.CERTIFICATE_DELIVERED,
    ]
    assert world.database.certificates[result.certificate.certificate_id].deliver_time == world.clock.now()
    await settle()
    assert world.order.txt_records == ()
    assert not world.dns.records
    assert world.dns.written == len(NAMES)


async def test_the_stored_certificate_says_what_policy_and_the_ca_decided() -> None:
    """Names, key, times and the capped renewal time of the record are those of the leaf, the profile and the host."""
    world = World()
    world.change_profile(renew_before=timedelta(days=80))
    authority = await world.started()

    record = (await authority.issue(caller(), issue())).certificate

    assert record is not None
    assert (record.identity, record.profile, record.dns_names) == ("web1.test", "shop", NAMES)
    assert record.public_key_sha256 == key_hash()
    assert record.not_after - record.not_before == world.ca.lifetime
    assert record.renew_time == record.not_before + world.ca.lifetime / 2
    assert record.acme_order_url in world.ca.orders
    assert record.certificate_pem.count("BEGIN CERTIFICATE") == record.chain_pem.count("BEGIN CERTIFICATE") == 1


async def test_the_renewal_time_without_a_setting_has_the_phase_of_its_host() -> None:
    """Hosts that got certificates together don't renew together."""
    world = World()
    authority = await world.started()

    for name in ("web1.test", "web2.test"):
        record = (await authority.issue(caller(name), issue(name))).certificate
        assert record is not None
        assert record.renew_time == renew_time(record.not_before, record.not_after, None, name)


async def test_every_event_before_the_ca_is_contacted_is_durable() -> None:
    """When the CA sees the order, the request and its authorisation are already in the audit log."""
    world = World()
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()

    result = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    assert result.order.state is OrderState.PENDING
    assert not world.ca.orders
    assert world.kinds() == [
        AuditEventType.CERTIFICATE_REQUEST_RECEIVED,
        AuditEventType.CERTIFICATE_AUTHORIZED,
    ]
    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED


async def test_events_carry_hashes_and_never_the_csr() -> None:
    """What the log says of a CSR are hashes and names."""
    world = World()
    authority = await world.started()
    await authority.issue(caller(), issue())

    for event in world.database.events:
        record = event.record()
        assert len(record["csr_sha256"]) == 64
        assert record["csr_public_key_sha256"] == key_hash()
        assert record["csr_dns_names"] == list(NAMES)
        assert "BEGIN" not in str(record)
        assert record["identity"] == "web1.test"
        assert record["request_id"] == "req-1"


async def test_the_same_request_again_is_answered_from_the_cache_in_one_durable_wait() -> None:
    """A certificate that isn't due is handed out again: one event, one transaction, nothing at the CA."""
    world = World()
    authority = await world.started()
    first = await first_certificate(world, authority)
    commits, events, calls = world.database.commits, len(world.database.events), list(world.issuer.faults.calls)

    result = await authority.issue(caller(), issue(request_id="req-2"))

    assert result.source == "cache"
    assert result.certificate is not None
    assert result.certificate.certificate_id == first
    assert result.order.order_id == result.certificate.order_id
    assert world.database.commits == commits + 1
    assert world.kinds()[events:] == [AuditEventType.CERTIFICATE_CACHE_HIT]
    assert {event.request_id for event in world.database.events[events:]} == {"req-2"}
    assert world.issuer.faults.calls == calls


async def test_another_csr_of_the_same_key_is_answered_from_the_cache() -> None:
    """What counts is the key and the names, not the bytes of the CSR."""
    world = World()
    authority = await world.started()
    await first_certificate(world, authority)

    result = await authority.issue(caller(), issue(csr_pem=build_csr(key(), sans=tuple(reversed(NAMES)))))

    assert result.source == "cache"
    assert len(world.orders) == 1


@pytest.mark.parametrize(
    ("change", "source", "orders"),
    [
        pytest.param("nothing", "cache", 1, id="fresh"),
        pytest.param("due and delivered", "order", 2, id="due-and-delivered"),
        pytest.param("due but never delivered", "cache", 1, id="due-but-never-delivered"),
        pytest.param("expired and never delivered", "order", 2, id="expired-and-never-delivered"),
        pytest.param("revoked", "order", 2, id="revoked"),
        pytest.param("profile edited", "order", 2, id="another-profile-hash"),
        pytest.param("another key", "order", 2, id="another-key"),
    ],
)
async def test_what_is_cached(change: str, source: str, orders: int) -> None:
    """Cached is: same profile hash, issuer and key, not revoked, and before its renewal time or not yet delivered."""
    world = World()
    authority = await world.started()
    delivered = change not in ("due but never delivered", "expired and never delivered")
    result = await authority.issue(caller(), issue(wait=timedelta(minutes=1) if delivered else NO_WAIT))
    await world.run_on()
    name = "one"
    match change:
        case "due and delivered" | "due but never delivered":
            world.clock.advance(70 * DAY)
        case "expired and never delivered":
            world.clock.advance(91 * DAY)
        case "revoked":
            assert result.certificate is not None
            await authority.revoke(caller(), "r", result.certificate.certificate_id, RevocationReason.SUPERSEDED)
            name = "two"  # its key is spent
        case "profile edited":
            world.change_profile(hash="other-hash")
        case "another key":
            name = "two"

    again = await authority.issue(caller(), issue(name))

    assert again.source == source
    assert again.certificate is not None
    assert len(world.orders) == orders


async def test_a_renewal_makes_a_new_order_although_the_certificate_is_fresh() -> None:
    """Renewing never returns what it replaces, whether the key is a new one or the same."""
    world = World()
    authority = await world.started()
    first = await first_certificate(world, authority)

    rotated = await authority.issue(caller(), issue("two", replaces=first))
    kept = await authority.issue(caller(), issue("one", replaces=first))

    assert rotated.certificate is not None
    assert kept.certificate is not None
    ids = {first, rotated.certificate.certificate_id, kept.certificate.certificate_id}
    assert len(ids) == 3
    assert [order.replaces_certificate_id for order in world.orders] == ["", first, first]


@pytest.mark.parametrize("due", [pytest.param(False, id="fresh"), pytest.param(True, id="due-and-delivered")])
@pytest.mark.parametrize("name", [pytest.param("two", id="new-key"), pytest.param("one", id="same-key")])
async def test_a_renewal_repeated_after_a_lost_answer_gets_its_own_certificate_again(name: str, due: bool) -> None:
    """The same key and replaced certificate are the same renewal, also long after its order was ISSUED."""
    world = World()
    authority = await world.started()
    first = await first_certificate(world, authority)
    renewed = await authority.issue(caller(), issue(name, replaces=first))
    assert renewed.certificate is not None
    if due:
        world.clock.advance(70 * DAY)

    again = await authority.issue(caller(), issue(name, replaces=first))

    assert again.certificate is not None
    assert again.certificate.certificate_id == renewed.certificate.certificate_id
    assert again.source == "cache"
    assert len(world.orders) == 2


async def test_a_certificate_whose_key_is_kept_is_renewed_when_due() -> None:
    """With a reused key the chain of renewals goes on: each replaces the one before."""
    world = World()
    authority = await world.started()
    current = await first_certificate(world, authority)
    for _ in range(3):
        world.clock.advance(70 * DAY)
        result = await authority.issue(caller(), issue(replaces=current))
        assert result.certificate is not None
        assert result.certificate.certificate_id != current
        current = result.certificate.certificate_id
    assert len(world.orders) == 4


@pytest.mark.parametrize(
    "replaces",
    [
        pytest.param("unknown", id="unknown"),
        pytest.param("another's", id="another-hosts"),
        pytest.param("of another profile", id="of-another-profile"),
    ],
)
async def test_what_is_replaced_must_be_the_callers_own_of_the_same_profile(replaces: str) -> None:
    """Unknown, another's and another profile's certificates get one answer, and no order is made."""
    world = World()
    authority = await world.started()
    host = "web2.test" if replaces == "another's" else "web1.test"
    mail = issue(csr_pem=csr("mail", ("mail.test",)), profile="mail")
    result = await authority.issue(caller(host), mail if replaces == "of another profile" else issue("other"))
    assert result.certificate is not None
    replaced = "cert-404" if replaces == "unknown" else result.certificate.certificate_id
    orders = len(world.orders)

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue(replaces=replaced))

    assert caught.value.refusal.reason is Reason.CERTIFICATE_NOT_FOUND
    assert caught.value.refusal.message == "you have no such certificate"
    assert len(world.orders) == orders


async def test_a_hundred_same_requests_make_one_order() -> None:
    """Callers that ask at once share the order and get the same certificate; each hand-out is logged."""
    world = World()
    authority = await world.started()

    results = await asyncio.gather(
        *(authority.issue(caller(), issue(request_id=f"req-{number}")) for number in range(100))
    )

    assert len({result.certificate.certificate_id for result in results if result.certificate is not None}) == 1
    assert all(result.certificate is not None for result in results)
    assert len(world.orders) == len(world.ca.orders) == world.ca.finalisations == 1
    assert world.logged(AuditEventType.CERTIFICATE_REQUEST_RECEIVED) == 100
    assert world.logged(AuditEventType.CERTIFICATE_ISSUED) == 1
    assert (
        world.logged(AuditEventType.CERTIFICATE_DELIVERED) + world.logged(AuditEventType.CERTIFICATE_CACHE_HIT) == 100
    )


@pytest.mark.parametrize("ticks", range(80))
async def test_no_moment_of_asking_again_makes_a_second_order(ticks: int) -> None:
    """Whenever an equal request comes while an order runs and ends, there is one order and one certificate."""
    world = World()
    authority = await world.started()
    first = asyncio.create_task(authority.issue(caller(), issue()))
    await settle(ticks)

    second = await authority.issue(caller(), issue())

    certificates = [second.certificate, (await first).certificate]
    assert [c.certificate_id for c in certificates if c is not None] == [world.order.certificate_id] * 2
    assert len(world.orders) == 1
    assert len(world.ca.issued) == 1


async def test_who_looked_into_the_cache_before_an_order_ended_looks_again() -> None:
    """An answer of the cache that an order has overtaken makes no second order."""
    world = World()
    authority = await world.started()
    original = world.stores.certificates.find_cached
    late = asyncio.Event()

    async def overtaken(*args: str) -> object:
        found = await original(*args)
        await late.wait()
        return found

    gate = world.issuer.faults.hold("finalize")
    await authority.issue(caller(), issue(wait=NO_WAIT))
    world.stores.certificates.find_cached = overtaken  # type: ignore[assignment,method-assign] # a race, made sure
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    gate.set()
    await settle()
    assert world.order.state is OrderState.ISSUED
    late.set()

    result = await call

    assert result.source == "cache"
    assert len(world.orders) == 1


async def test_an_order_that_was_joined_but_has_ended_meanwhile_is_not_run_again() -> None:
    """An answer of the store that the order has overtaken leads to the order as it is, not to the CA."""
    world = World()
    authority = await world.started()
    original = world.stores.orders.open_order
    late = asyncio.Event()

    async def overtaken(*args: Any, **options: Any) -> OpenedOrder | None:
        opened = await original(*args, **options)
        if not opened.created:
            await late.wait()
        return opened

    world.stores.orders.open_order = overtaken  # type: ignore[method-assign] # a race, made sure
    calls = [asyncio.create_task(authority.issue(caller(), issue())) for _ in range(2)]
    await settle()
    assert world.order.state is OrderState.ISSUED
    late.set()

    results = await asyncio.gather(*calls)

    assert {result.order.state for result in results} == {OrderState.ISSUED}
    assert world.issuer.faults.count("create_order") == 1
    assert world.issuer.faults.count("get_order") == 0


async def test_a_follower_that_leaves_changes_nothing_for_the_order() -> None:
    """Cancelling every caller, the one that opened the order included, leaves the order running."""
    world = World()
    gate = world.issuer.faults.hold("finalize")
    authority = await world.started()
    calls = [asyncio.create_task(authority.issue(caller(), issue())) for _ in range(3)]
    await settle()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    gate.set()
    await world.run_on()

    assert world.order.state is OrderState.ISSUED
    result = await authority.issue(caller(), issue())
    assert result.source == "cache"


@pytest.mark.parametrize("ticks", range(12))
async def test_a_caller_that_leaves_while_its_order_is_made_leaves_no_order_behind_that_nobody_runs(ticks: int) -> None:
    """Either no order was made, or it runs to its end without its caller."""
    world = World()
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle(ticks)
    call.cancel()
    await asyncio.wait({call})
    await settle()

    assert all(order.state is OrderState.ISSUED for order in world.orders)


@pytest.mark.parametrize(
    ("wait", "longest", "answered_after"),
    [
        pytest.param(NO_WAIT, timedelta(minutes=10), NO_WAIT, id="zero-answers-at-once"),
        pytest.param(timedelta(seconds=-5), timedelta(minutes=10), NO_WAIT, id="negative-answers-at-once"),
        pytest.param(timedelta(seconds=30), timedelta(minutes=10), timedelta(seconds=30), id="as-asked"),
        pytest.param(timedelta(hours=1), timedelta(minutes=10), timedelta(minutes=10), id="cut-to-the-longest"),
    ],
)
async def test_a_call_waits_no_longer_than_asked_and_allowed(
    wait: timedelta, longest: timedelta, answered_after: timedelta
) -> None:
    """When the order isn't done in time, the call answers with the open order and no certificate."""
    world = World()
    world.issuer.faults.hold("create_order")
    authority = await world.started()

    call = asyncio.create_task(authority.issue(caller(), issue(wait=wait)))
    await settle()
    if answered_after:
        world.clock.advance(answered_after - timedelta(milliseconds=1))
        await settle()
        assert not call.done()
        world.clock.advance(timedelta(milliseconds=1))
        await settle()

    assert call.done()
    result = call.result()
    assert result.order.state is OrderState.PENDING
    assert (result.certificate, result.source) == (None, "")


async def test_a_watcher_sees_every_state_and_the_certificate_at_the_end() -> None:
    """The stream starts with the order as it is, has each change, and ends after ISSUED."""
    world = World()
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))

    async def watch() -> list[tuple[OrderState, bool]]:
        stream = authority.watch_order(caller(), "w", opened.order.order_id)
        return [(result.order.state, result.certificate is not None) async for result in stream]

    watching = asyncio.create_task(watch())
    await settle()
    gate.set()

    assert await watching == [
        (OrderState.PENDING, False),
        (OrderState.AUTHORIZED, False),
        (OrderState.VALIDATING, False),
        (OrderState.FINALIZING, False),
        (OrderState.ISSUED, True),
    ]
    assert await watch() == [(OrderState.ISSUED, True)]


async def test_a_watcher_hears_what_is_in_the_way() -> None:
    """Each cause once, however often it is met; it is gone with the next state."""
    world = World()
    world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "no answer"), times=3)
    world.solver.faults.fail("wait_until_visible", RefusalError(Reason.DNS_UNAVAILABLE, "ns2 lacks it"), times=2)
    world.solver.faults.fail("wait_until_visible", RefusalError(Reason.DNS_UNAVAILABLE, "ns3 lacks it"))
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))
    seen: list[tuple[OrderState, str]] = []

    async def watch() -> None:
        stream = authority.watch_order(caller(), "w", opened.order.order_id)
        seen.extend([(result.order.state, result.order.trouble) async for result in stream])

    watching = asyncio.create_task(watch())
    await world.run_on()
    await watching
    assert seen == [
        (OrderState.PENDING, ""),
        (OrderState.PENDING, "ISSUER_UNAVAILABLE: no answer"),
        (OrderState.AUTHORIZED, ""),
        (OrderState.VALIDATING, ""),
        (OrderState.VALIDATING, "DNS_UNAVAILABLE: ns2 lacks it"),
        (OrderState.VALIDATING, "DNS_UNAVAILABLE: ns3 lacks it"),
        (OrderState.FINALIZING, ""),
        (OrderState.ISSUED, ""),
    ]


async def test_whoever_asks_again_hears_what_is_in_the_way() -> None:
    """An order that is joined or looked at tells it too, and the log has each cause once."""
    world = World()
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "no answer"))
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    shown = await authority.get_order(caller(), "g", opened.order.order_id)
    joined = await authority.issue(caller(), issue(wait=NO_WAIT))
    assert [result.order.trouble for result in (shown, joined)] == ["ISSUER_UNAVAILABLE: no answer"] * 2


async def test_a_name_server_that_gives_no_answer_is_told_and_counted() -> None:
    """The order goes on without it, and says so to whoever waits."""
    world = World()
    world.solver.silent = ("ns2.test can't be asked (no answer in 3 s)",)
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    shown = await authority.get_order(caller(), "g", opened.order.order_id)
    assert "continues without a name server that does not answer: ns2.test" in shown.order.trouble
    assert world.meter.total(metrics.SERVERS_SILENT) == 1
    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED


async def test_watching_an_order_that_rests_takes_it_up_again() -> None:
    """After an unexpected fault an open order is under way again as soon as somebody cares."""
    world = World()
    world.issuer.faults.fail("download", ZeroDivisionError())
    authority = await world.started()
    opened = await authority.issue(caller(), issue())
    assert opened.order.state is OrderState.FINALIZING

    stream = authority.watch_order(caller(), "w", opened.order.order_id)

    assert [result.order.state async for result in stream] == [OrderState.FINALIZING, OrderState.ISSUED]


async def test_the_memory_of_ended_orders_is_bounded() -> None:
    """With room for one, each is read from the store again when it is needed."""
    world = World(settings=IssuanceSettings(order_cache_size=1))
    authority = await world.started()
    for name in ("one", "two", "one", "two"):
        result = await authority.issue(caller(), issue(name))
        assert result.order.public_key_sha256 == key_hash(name)
    assert len(authority._issued_orders) == 1


async def test_an_order_with_names_already_validated_skips_the_dns() -> None:
    """A CA that reuses authorisations hands out a ready order: no record is written."""
    world = World()
    world.ca.reuses_authorizations = True
    authority = await world.started()

    result = await authority.issue(caller(), issue())

    assert result.order.state is OrderState.ISSUED
    assert world.dns.written == 0


async def test_calls_before_the_start_are_misuse() -> None:
    """An authority that isn't running says so instead of making an order that nobody runs."""
    with pytest.raises(RuntimeError):
        await World().authority().issue(caller(), issue())
