"""One order's way through the CA when something goes wrong: retried, ended, abandoned, and never finalised twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from certplane.broker import metrics
from certplane.broker.events import AuditEventType, AuditSeverity
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus, KeyUse, OrderState, Profile, TxtRecord
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError
from tests.fakes.issuer import CaOrder
from tests.support.authority import Authority, certificate_pem
from tests.support.csr import SAN, ec_key, sequence, tlv
from tests.support.issuance import (
    NO_WAIT,
    World,
    caller,
    csr,
    ended,
    issue,
    key_hash,
    lose_order,
    policy,
    settle,
    unavailable,
)

MINUTE = timedelta(minutes=1)

ISSUER_STEPS = ("create_order", "answer_challenges", "finalize", "download")
DNS_STEPS = ("present", "wait_until_visible")
STORE_STEPS = ("change_order", "finish_order")


def step_of(world: World, operation: str) -> object:
    """The fake whose method this is."""
    if operation in DNS_STEPS:
        return world.solver.faults
    return world.database.faults if operation in STORE_STEPS else world.issuer.faults


async def run_order(world: World) -> None:
    """Open an order and let time pass until it has ended."""
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()


def no_trace_is_left(world: World) -> bool:
    """Whether no TXT record stands, and none is journalled."""
    return not world.dns.records and not world.order.txt_records


@pytest.mark.parametrize("lost", [pytest.param(False, id="never-arrived"), pytest.param(True, id="answer-lost")])
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("operation", [*ISSUER_STEPS, *DNS_STEPS])
async def test_a_step_that_could_not_be_done_is_tried_again(operation: str, times: int, lost: bool) -> None:
    """A CA or DNS provider that is away for a while delays the order: one finalisation, one certificate, no trace."""
    world = World()
    reason = Reason.DNS_UNAVAILABLE if operation in DNS_STEPS else Reason.ISSUER_UNAVAILABLE
    faults = step_of(world, operation)
    (faults.fail_after if lost else faults.fail)(operation, unavailable(reason), times=times)  # type: ignore[attr-defined]

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == len(world.ca.issued) == 1
    assert no_trace_is_left(world)
    # An answer lost once is found by looking, so that the same step need not be asked for again.
    assert world.meter.total(metrics.STEP_FAILURES, reason=reason.value) >= 1


async def test_nothing_is_proven_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA whose order wants another name's proof when it is looked at again gets no record in that name's zone."""
    world = World()
    world.issuer.faults.fail("answer_challenges", unavailable())
    victim = DnsChallenge(
        "victim.test", "_acme-challenge.victim.test", "value", "https://ca.test/a", "https://ca.test/c"
    )
    look, write = world.ca.look, world.dns.write
    written: list[str] = []

    def greedy(url: str) -> CaOrder:
        order = look(url)
        return replace(order, challenges=(*order.challenges, victim))

    def noted(record: TxtRecord) -> TxtRecord:
        written.append(record.name)
        return write(record)

    monkeypatch.setattr(world.ca, "look", greedy)
    monkeypatch.setattr(world.dns, "write", noted)

    await run_order(world)

    assert "_acme-challenge.victim.test" not in written
    assert world.order.state is OrderState.FAILED
    assert world.order.error is not None
    assert "victim.test" in world.order.error.message
    assert no_trace_is_left(world)


@pytest.mark.parametrize("operation", STORE_STEPS)
@pytest.mark.parametrize("reason", [Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE])
async def test_a_journal_that_can_not_be_written_is_waited_for(operation: str, reason: Reason) -> None:
    """The store may be away for longer than an order may take: what was begun is neither lost nor done twice."""
    world = World()
    world.database.faults.fail(operation, unavailable(reason), times=100)

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert len(world.ca.orders) == world.ca.finalisations == len(world.database.certificates) == 1
    assert world.meter.total(metrics.JOURNAL_RETRIES) == 100
    assert no_trace_is_left(world)


@pytest.mark.parametrize(
    ("operation", "reason", "state"),
    [
        pytest.param("create_order", Reason.ISSUER_UNAVAILABLE, OrderState.PENDING, id="create"),
        pytest.param("present", Reason.DNS_UNAVAILABLE, OrderState.VALIDATING, id="present"),
        pytest.param("wait_until_visible", Reason.DNS_UNAVAILABLE, OrderState.VALIDATING, id="propagate"),
        pytest.param("answer_challenges", Reason.ISSUER_UNAVAILABLE, OrderState.VALIDATING, id="answer"),
        pytest.param("finalize", Reason.ISSUER_UNAVAILABLE, OrderState.FINALIZING, id="finalize"),
    ],
)
async def test_an_order_that_gets_nowhere_fails_when_its_time_is_up(
    operation: str, reason: Reason, state: OrderState
) -> None:
    """After the order's time it is FAILED with what was last in the way, says when to come back, and cleans up."""
    world = World()
    step_of(world, operation).fail_always(operation, unavailable(reason))  # type: ignore[attr-defined]
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert world.order.state is state
    start = world.clock.now()

    await world.run_on()

    assert ended(world.order)
    assert world.order.error is not None
    assert world.order.error.reason is reason
    assert world.order.retry_time == world.order.update_time + timedelta(minutes=5)
    assert world.clock.now() - start <= world.settings.order_time_limit + 2 * MINUTE
    assert world.ca.finalisations == 0
    assert no_trace_is_left(world)
    assert world.logged(AuditEventType.CERTIFICATE_ISSUE_FAILED) == 1
    assert world.logged(AuditEventType.ORDER_ABANDONED) == (0 if state is OrderState.PENDING else 1)


async def test_challenges_are_not_answered_before_their_records_are_seen() -> None:
    """A record that never propagates costs no validation at the CA."""
    world = World()
    world.dns.hidden = True

    await run_order(world)

    assert world.order.state is OrderState.FAILED
    assert world.issuer.faults.count("answer_challenges") == 0
    assert no_trace_is_left(world)


@pytest.mark.parametrize(
    ("operation", "refusal", "pause"),
    [
        pytest.param(
            "create_order",
            RefusalError(Reason.ISSUER_REJECTED, "rejectedIdentifier"),
            timedelta(minutes=15),
            id="ca-rejects-the-names",
        ),
        pytest.param(
            "create_order",
            RefusalError(Reason.ISSUER_RATE_LIMITED, "too many", retry_after=timedelta(hours=34)),
            timedelta(hours=34),
            id="ca-limits-and-says-until-when",
        ),
        pytest.param(
            "create_order",
            RefusalError(Reason.ISSUER_RATE_LIMITED, "too many"),
            timedelta(hours=1),
            id="ca-limits-without-saying",
        ),
        pytest.param(
            "create_order",
            RefusalError(Reason.ISSUER_UNAVAILABLE, "maintenance", retry_after=timedelta(hours=2)),
            timedelta(hours=2),
            id="ca-is-away-for-longer-than-the-order",
        ),
        pytest.param(
            "present", RefusalError(Reason.DNS_REJECTED, "token revoked"), timedelta(minutes=5), id="dns-rejects"
        ),
        pytest.param(
            "answer_challenges",
            RefusalError(Reason.ISSUER_REJECTED, "bad TXT"),
            timedelta(minutes=15),
            id="challenge-failed",
        ),
        pytest.param(
            "finalize", RefusalError(Reason.ISSUER_REJECTED, "badCSR"), timedelta(minutes=15), id="ca-rejects-the-csr"
        ),
        pytest.param(
            "finalize",
            RefusalError(Reason.ISSUER_RATE_LIMITED, "too many", retry_after=timedelta(hours=3)),
            timedelta(hours=3),
            id="ca-limits-the-finalisation",
        ),
    ],
)
async def test_what_was_refused_ends_the_order_until_the_ca_says(
    operation: str, refusal: RefusalError, pause: timedelta
) -> None:
    """A refusal isn't tried again; the same request gets the same failed order until its retry time."""
    world = World()
    step_of(world, operation).fail(operation, refusal)  # type: ignore[attr-defined]
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    failed = world.order
    assert failed.error is not None
    assert failed.error.reason is refusal.refusal.reason
    assert failed.retry_time == failed.update_time + pause
    assert no_trace_is_left(world)

    world.clock.advance(failed.retry_time - world.clock.now() - timedelta(seconds=1))
    again = await authority.issue(caller(), issue())
    assert (again.order.order_id, again.order.error, again.certificate) == (failed.order_id, failed.error, None)

    world.clock.advance(timedelta(seconds=1))
    assert (await authority.issue(caller(), issue())).order.state is OrderState.ISSUED
    assert len(world.orders) == 2
    assert world.ca.finalisations == 1


async def test_the_cas_problem_documents_are_kept() -> None:
    """What the CA said is part of the order and of the audit event."""
    world = World()
    problem = ProblemDocument("urn:ietf:params:acme:error:caa", "CAA record forbids", 403, "shop.test")
    world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_REJECTED, "refused", problems=[problem]))

    await run_order(world)

    assert world.order.error is not None
    assert world.order.error.problems == (problem,)
    assert world.database.events[-1].reason == "refused; CAA record forbids"


async def test_a_short_rate_limit_is_waited_out_in_the_order() -> None:
    """A CA that says "in 30 seconds" is asked again after 30 seconds, not sooner, by the same order."""
    world = World()
    wait = timedelta(seconds=30)
    world.issuer.faults.fail("create_order", unavailable(Reason.ISSUER_RATE_LIMITED, wait))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.clock.advance(wait - timedelta(seconds=1))
    await settle()
    assert world.issuer.faults.count("create_order") == 1

    world.clock.advance(timedelta(seconds=1))
    await settle()

    assert world.order.state is OrderState.ISSUED


async def test_a_rate_limit_holds_for_every_key_of_the_same_names() -> None:
    """Nobody of the name set asks the CA before it said; others do."""
    world = World()
    world.issuer.faults.fail("create_order", unavailable(Reason.ISSUER_RATE_LIMITED, timedelta(hours=2)))
    authority = await world.started()
    await authority.issue(caller(), issue())
    await settle()
    world.clock.advance(timedelta(minutes=30))

    held = await authority.issue(caller("web2.test"), issue("two"))

    assert held.order.error is not None
    assert held.order.error.reason is Reason.ISSUER_RATE_LIMITED
    assert held.order.error.retry_after == timedelta(minutes=90)
    assert held.order.retry_time == world.clock.now() + timedelta(minutes=90)
    assert world.issuer.faults.count("create_order") == 1
    world.clock.advance(timedelta(minutes=90))
    assert (await authority.issue(caller("web2.test"), issue("two"))).order.state is OrderState.ISSUED


async def test_a_lost_finalisation_is_looked_for_and_never_repeated_blindly() -> None:
    """The answer to the finalisation is lost: the CA's order is looked at and the certificate downloaded."""
    world = World()
    world.issuer.faults.fail_after("finalize", unavailable())

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.issuer.faults.count("finalize") == 1
    assert world.issuer.faults.count("get_order") == 1


async def test_a_finalisation_that_never_arrived_is_sent_again() -> None:
    """The CA's order is still ready: it never got the CSR."""
    world = World()
    world.issuer.faults.fail("finalize", unavailable())

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.issuer.faults.count("finalize") == 2
    assert world.ca.finalisations == 1


async def test_a_ca_that_is_slow_to_issue_is_waited_for_beyond_the_orders_time() -> None:
    """From the finalisation on only the CA's word ends the order: its certificate is never given up."""
    world = World()
    world.ca.slow = True
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    for _ in range(100):
        await settle(30)
        world.clock.advance(MINUTE)
    assert world.order.state is OrderState.FINALIZING

    world.ca.complete()
    await world.run_on()

    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1


async def test_an_order_that_the_ca_never_ends_holds_up_nobody_else() -> None:
    """One that is "processing" for hours keeps its own names' turn, and no place that other names need."""
    world = World(settings=IssuanceSettings(parallel_orders=1))
    authority = await world.started()
    world.ca.slow = True
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle(30)
    world.ca.slow = False
    await authority.issue(caller(), issue(csr_pem=csr("mail", ("mail.test",)), profile="mail", wait=NO_WAIT))
    for _ in range(60):
        await settle(30)
        world.clock.advance(MINUTE)

    assert [(order.profile, order.state) for order in world.orders] == [
        ("shop", OrderState.FINALIZING),
        ("mail", OrderState.ISSUED),
    ]
    world.ca.complete()
    await world.run_on()
    assert [order.state for order in world.orders] == [OrderState.ISSUED, OrderState.ISSUED]


@pytest.mark.parametrize("takes", [20, 40], ids=["in-time", "too-long"])
async def test_a_ca_that_approves_names_by_itself_has_more_time(takes: int) -> None:
    """Its orders come ready, or some minutes later; one that it never approves says what it waits for when it ends."""
    patient = IssuanceSettings(approving_issuers=frozenset({"fake-ca"}))
    world = World(settings=patient)
    slow = Refusal(Reason.ISSUER_UNAVAILABLE, "the CA has not approved shop.test yet")
    start, look, answer = world.clock.now(), world.issuer.get_order, world.issuer.answer_challenges

    def nothing_to_prove(seen: IssuerOrder) -> IssuerOrder:
        return replace(seen, challenges=())

    async def get_order(url: str, timeout: timedelta) -> IssuerOrder:
        return nothing_to_prove(await look(url, timeout))

    async def answer_challenges(order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        if world.clock.now() - start < takes * MINUTE:
            return replace(order, trouble=slow)
        world.ca.set_status(order.url, IssuerOrderStatus.READY)
        return nothing_to_prove(await answer(order, timeout))

    world.issuer.get_order = get_order  # type: ignore[method-assign]
    world.issuer.answer_challenges = answer_challenges  # type: ignore[method-assign]

    await run_order(world)

    if takes < patient.approval_time_limit / MINUTE:
        assert world.order.state is OrderState.ISSUED
        assert (len(world.ca.orders), world.ca.finalisations) == (1, 1)
    else:
        assert world.order.error is not None
        assert world.order.error.message == slow.message
    assert no_trace_is_left(world)


async def test_a_record_that_stands_is_not_written() -> None:
    """What the domain's owner has published for good is answered for as it is, and stays."""
    world = World()
    create = world.issuer.create_order

    async def create_order(csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = "") -> IssuerOrder:
        order = await create(csr_der, profile, timeout, replaces=replaces)
        world.ca.orders[order.url] = replace(world.ca.orders[order.url], challenges=())
        return replace(order, challenges=tuple(replace(one, standing=True) for one in order.challenges))

    world.issuer.create_order = create_order  # type: ignore[method-assign]

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.solver.faults.count("present") == 1
    assert not world.dns.written


async def test_a_ca_that_goes_away_after_the_finalisation_is_waited_for() -> None:
    """An unreachable CA is no reason to give up a certificate that it may have issued."""
    world = World()
    world.issuer.faults.fail_after("finalize", unavailable())
    for operation in ("get_order", "download"):
        world.issuer.faults.fail(operation, unavailable(), times=20)

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1


def invalid(world: World) -> None:
    (url,) = world.ca.orders
    world.ca.set_status(url, IssuerOrderStatus.INVALID)


def forgotten(world: World) -> None:
    (url,) = world.ca.orders
    world.ca.forget(url)


@pytest.mark.parametrize("happens", [pytest.param(invalid, id="invalid"), pytest.param(forgotten, id="unknown")])
async def test_an_order_that_the_ca_gave_up_after_the_finalisation_fails(happens: Callable[[World], None]) -> None:
    """It is FAILED, never silently done again."""
    world = World()
    gate = world.issuer.faults.hold("download")
    world.issuer.faults.fail("download", unavailable())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    happens(world)
    gate.set()

    await world.run_on()

    assert world.order.error is not None
    assert world.order.error.reason is Reason.ISSUER_REJECTED
    assert world.ca.finalisations <= 1
    assert world.issuer.faults.count("create_order") == 1
    assert world.logged(AuditEventType.ORDER_ABANDONED) == 0
    assert no_trace_is_left(world)


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(None, id="unknown"),
        pytest.param(IssuerOrderStatus.VALID, id="finalised-by-somebody-else"),
        pytest.param(IssuerOrderStatus.PROCESSING, id="being-finalised-by-somebody-else"),
    ],
)
async def test_an_order_that_was_not_finalised_may_be_abandoned_and_is_counted(
    status: IssuerOrderStatus | None,
) -> None:
    """The CA lost it or somebody else used it before our CSR was sent: another is made, the first is on record."""
    world = World()

    url = await lose_order(world, status)

    assert world.order.state is OrderState.ISSUED
    assert world.order.acme_order_url != url
    assert world.ca.finalisations == 1
    (abandoned,) = [event for event in world.database.events if event.event_type is AuditEventType.ORDER_ABANDONED]
    assert abandoned.acme_order_url == url
    assert world.meter.total(metrics.ORDERS_ABANDONED) == 1
    assert no_trace_is_left(world)


async def test_a_ca_that_loses_every_order_is_not_asked_for_ever() -> None:
    """After a few abandoned orders at the CA the order fails."""
    world = World()
    world.issuer.faults.fail_always("present", unavailable(Reason.DNS_UNAVAILABLE))
    world.issuer.faults.fail_always("get_order", RefusalError(Reason.ISSUER_REJECTED, "unknown"))
    world.solver.faults.fail_always("present", unavailable(Reason.DNS_UNAVAILABLE))

    await run_order(world)

    assert world.order.state is OrderState.FAILED
    assert world.issuer.faults.count("create_order") == 4


@pytest.mark.parametrize("attribute", ["wrong_key", "wrong_names"])
async def test_a_chain_that_is_not_what_was_asked_for_is_rejected_loudly(attribute: str) -> None:
    """Another key's or other names' certificate is never stored; the event is an error, not a warning."""
    world = World()
    setattr(world.ca, attribute, True)

    await run_order(world)

    assert world.order.error is not None
    assert world.order.error.reason is Reason.ISSUER_REJECTED
    assert not world.database.certificates
    assert world.database.events[-1].severity is AuditSeverity.ERROR
    assert no_trace_is_left(world)


@pytest.mark.parametrize("attribute", ["wrong_key", "wrong_names"])
async def test_a_key_that_the_ca_used_up_is_spent(attribute: str) -> None:
    """The CA has issued, though not what was asked for: the key never gets a second certificate; another key may."""
    world = World()
    setattr(world.ca, attribute, True)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert len(world.ca.issued) == 1
    setattr(world.ca, attribute, False)
    assert world.order.retry_time is not None
    world.clock.advance(world.order.retry_time - world.clock.now())

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue())

    assert caught.value.refusal.reason is Reason.KEY_REUSED
    assert len(world.ca.issued) == 1
    assert (await authority.issue(caller(), issue("two"))).order.state is OrderState.ISSUED


def _blocks(chain: str) -> list[str]:
    return [f"{block}-----END CERTIFICATE-----\n" for block in chain.split("-----END CERTIFICATE-----\n")[:-1]]


@pytest.mark.parametrize(
    ("sends", "told"),
    [
        pytest.param(lambda chain: "".join(reversed(_blocks(chain))), False, id="the-other-way-round"),
        pytest.param(lambda chain: _blocks(chain)[0] + chain, True, id="leaf-twice"),
        pytest.param(lambda chain: chain + certificate_pem(Authority("Stranger").root), True, id="a-stranger"),
        pytest.param(
            lambda chain: chain + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", True, id="junk"
        ),
        pytest.param(lambda chain: f"\ufeff# leaf\n{chain}", False, id="comments"),
    ],
)
async def test_a_chain_that_others_install_is_taken(
    sends: Callable[[str], str], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What leads upwards from the certificate is stored; the rest costs a line in the log, and no certificate."""
    world = World()
    world.ca.sends = sends

    await run_order(world)

    (record,) = world.database.certificates.values()
    assert (len(_blocks(record.certificate_pem)), len(_blocks(record.chain_pem))) == (1, 1)
    assert world.order.state is OrderState.ISSUED
    assert ("dropped certificates that do not belong to the CA's chain" in caplog.text) is told


async def test_a_certificate_that_cannot_be_read_ends_its_order() -> None:
    """A kind of name that the library has no type for is the CA's fault, and no order waits for ever on it."""
    world = World()
    world.ca.sends = lambda _: x400_leaf()

    await run_order(world)

    assert world.order.state is OrderState.FAILED
    assert world.order.error is not None
    assert (world.order.error.reason, "can't be read" in world.order.error.message) == (Reason.ISSUER_REJECTED, True)


def x400_leaf() -> str:
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier(SAN), sequence(tlv(0xA3, b"")))
    return Authority().issue(key=ec_key(), extra=[(value, False)]).fullchain_pem


def profile_gone(world: World) -> None:
    world.policies.policy = policy(shop=None)


def host_gone(world: World) -> None:
    world.policies.policy = policy(hosts=("web2.test",))


def names_changed(world: World) -> None:
    world.change_profile(dns_names=("shop.test",), hash="other")


def profile_edited(world: World) -> None:
    world.change_profile(hash="other")


def key_blocked(world: World) -> None:
    world.database.put_key(key_hash(), KeyUse("web1.test", blocked=True))


def identity_contested(world: World) -> None:
    world.contest()


@pytest.mark.parametrize("held", ["create_order", "answer_challenges"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(identity_contested, Reason.IDENTITY_CONTESTED, id="identity-contested"),
        pytest.param(profile_gone, Reason.PROFILE_NOT_ALLOWED, id="profile-gone"),
        pytest.param(host_gone, Reason.IDENTITY_UNKNOWN, id="host-gone"),
        pytest.param(names_changed, Reason.NAMES_NOT_ALLOWED, id="names-changed"),
        pytest.param(profile_edited, Reason.PROFILE_NOT_ALLOWED, id="profile-edited"),
        pytest.param(key_blocked, Reason.KEY_REUSED, id="key-blocked"),
    ],
)
async def test_policy_is_asked_again_before_the_finalisation(
    held: str, change: Callable[[World], None], reason: Reason
) -> None:
    """What is no longer allowed is not finalised: the order fails, and the CA's pending order is counted as abandoned."""
    world = World()
    gate = world.issuer.faults.hold(held)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    start = world.clock.now()
    change(world)
    gate.set()

    await world.run_on()

    assert world.order.error is not None
    assert world.order.error.reason is reason
    assert world.order.retry_time == world.order.update_time == start
    assert world.issuer.faults.count("finalize") == 0
    assert world.logged(AuditEventType.ORDER_ABANDONED) == 1
    assert no_trace_is_left(world)


async def test_an_order_of_a_former_issuer_is_ended() -> None:
    """After the configuration has changed, an order that waits is not taken to another CA."""
    world = World()
    world.issuer.faults.hold("create_order")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    after = world.fork()
    after.issuer._name = "other-ca"

    await after.started()
    await after.run_on()

    assert after.order.error is not None
    assert after.order.error.reason is Reason.ISSUER_REJECTED
    assert after.order.retry_time == after.order.update_time
    assert not after.issuer.faults.calls


async def test_an_unexpected_fault_fails_its_order_and_no_other() -> None:
    """A bug in one order's way ends as INTERNAL there; its neighbour goes on."""
    world = World()
    world.issuer.faults.fail("create_order", ZeroDivisionError())
    authority = await world.started()
    broken = await authority.issue(caller(), issue())
    fine = await authority.issue(caller("web2.test"), issue("two"))

    assert broken.order.error is not None
    assert broken.order.error.reason is Reason.INTERNAL
    assert broken.order.order_id in broken.order.error.message
    assert fine.order.state is OrderState.ISSUED


async def test_an_unexpected_fault_after_the_finalisation_loses_nothing() -> None:
    """The order stays open; asking again takes it up where it was."""
    world = World()
    world.issuer.faults.fail("download", ZeroDivisionError())
    authority = await world.started()
    broken = await authority.issue(caller(), issue())
    assert broken.order.state is OrderState.FINALIZING

    again = await authority.issue(caller(), issue())

    assert again.order.state is OrderState.ISSUED
    assert again.order.order_id == broken.order.order_id
    assert world.ca.finalisations == 1


async def test_records_that_can_not_be_removed_are_swept_at_the_next_start() -> None:
    """The order is ISSUED all the same; its records stay journalled until a start removes them."""
    world = World()
    world.solver.faults.fail_always("remove", unavailable(Reason.DNS_UNAVAILABLE))
    await run_order(world)
    assert world.order.state is OrderState.ISSUED
    assert len(world.order.txt_records) == len(world.dns.records) == 2
    assert all(record.record_id for record in world.order.txt_records)
    assert world.meter.total(metrics.RECORDS_LEFT) == 2

    after = world.fork()
    await after.started()
    await settle()

    assert no_trace_is_left(after)


async def test_a_record_that_two_orders_need_is_removed_by_the_last() -> None:
    """A CA may give overlapping orders the same challenge: the first to end leaves the record standing."""
    world = World()
    shared = TxtRecord("", "_acme-challenge.shop.test", "same")

    async def plan(*_: object) -> list[TxtRecord]:
        return [shared]

    world.solver.plan = plan  # type: ignore[method-assign] # what such a CA causes
    gate = world.solver.faults.hold("wait_until_visible")
    world.change_profile(acme_profile="a")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.change_profile(acme_profile="b")
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    await settle()
    assert [order.state for order in world.orders] == [OrderState.VALIDATING] * 2
    answering = world.issuer.faults.hold("answer_challenges")
    world.solver.faults.fail("wait_until_visible", RefusalError(Reason.DNS_REJECTED, "no"))

    gate.set()
    await settle()
    first, second = world.orders
    assert (first.state, first.txt_records) == (OrderState.FAILED, ())
    assert len(world.dns.records) == len(second.txt_records) == 1

    answering.set()
    await world.run_on()
    assert not world.dns.records


async def test_a_ca_that_is_still_validating_is_given_time() -> None:
    """An order that is pending after the answers is looked at again after a wait, not in a tight loop."""
    world = World()
    world.ca.unhurried = 2
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert world.issuer.faults.count("answer_challenges") == 1

    await world.run_on()

    assert world.order.state is OrderState.ISSUED


async def test_each_state_starts_with_short_waits_again() -> None:
    """What went wrong before the order got on doesn't slow the next step down."""
    world = World()
    world.issuer.faults.fail("create_order", unavailable(), times=7)
    world.solver.faults.fail("present", unavailable(Reason.DNS_UNAVAILABLE))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    for _ in range(600):
        await settle(40)
        if world.solver.faults.count("present"):
            break
        world.clock.advance(timedelta(seconds=1))

    world.clock.advance(world.settings.retry.first)
    await settle()

    assert world.order.state is OrderState.ISSUED


async def test_the_ca_is_asked_why_an_order_became_invalid_unseen() -> None:
    """The answer that said so was lost: the problem documents are part of the failed order all the same."""
    world = World()
    problem = ProblemDocument("urn:ietf:params:acme:error:dns", "SERVFAIL", 400, "shop.test")
    why = RefusalError(Reason.ISSUER_REJECTED, "a challenge failed", problems=[problem])
    original = world.issuer.answer_challenges

    async def answer(order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        if order.challenges:
            world.ca.set_status(order.url, IssuerOrderStatus.INVALID)
            raise unavailable()
        assert (await original(order, timeout)).status is IssuerOrderStatus.INVALID
        raise why

    world.issuer.answer_challenges = answer  # type: ignore[method-assign] # a CA that fails the order unseen

    await run_order(world)

    assert world.order.error == why.refusal
    assert no_trace_is_left(world)


@pytest.mark.parametrize("status", [IssuerOrderStatus.VALID, IssuerOrderStatus.INVALID])
async def test_an_order_that_the_ca_hands_back_although_it_is_over_is_not_taken(status: IssuerOrderStatus) -> None:
    """What somebody else has finished is nothing to go on with: the CA is asked again."""
    world = World()
    url = world.ca.create(("*.shop.test", "shop.test")).url
    world.ca.set_status(url, status)
    original = world.issuer.create_order
    handed_back = IssuerOrder(url, status)

    async def create(csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = "") -> IssuerOrder:
        created = await original(csr_der, profile, timeout, replaces=replaces)
        return handed_back if world.issuer.faults.count("create_order") == 1 else created

    world.issuer.create_order = create  # type: ignore[method-assign] # such a CA

    await run_order(world)

    assert world.order.state is OrderState.ISSUED
    assert world.order.acme_order_url != url


async def test_a_ca_that_says_when_to_look_again_is_not_asked_sooner() -> None:
    """Also after the finalisation, and when the order's time is long up."""
    world = World()
    world.issuer.faults.fail_after("finalize", unavailable(Reason.ISSUER_UNAVAILABLE, timedelta(hours=1)))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.clock.advance(timedelta(minutes=59))
    await settle()
    assert world.issuer.faults.count("get_order") == 0

    world.clock.advance(timedelta(minutes=1))
    await settle()

    assert world.order.state is OrderState.ISSUED


@pytest.mark.parametrize("operation", ["create_order", "answer_challenges"])
async def test_an_order_that_somebody_else_has_ended_is_left_alone(operation: str) -> None:
    """Another hand made it FAILED in the store: followers learn of it, and nothing more is asked of the CA."""
    world = World()
    gate = world.issuer.faults.hold(operation)
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    answered = world.issuer.faults.count("answer_challenges")
    refusal = Refusal(Reason.INTERNAL, "by hand")
    world.database.put_order(replace(world.order, state=OrderState.FAILED, error=refusal, retry_time=world.clock.now()))
    gate.set()
    await settle()

    assert (await call).order.error == refusal
    assert world.issuer.faults.count("answer_challenges") == answered
    assert world.issuer.faults.count("finalize") == 0
    assert world.logged(AuditEventType.CERTIFICATE_ISSUE_FAILED) == 0
    assert no_trace_is_left(world)


async def test_the_orders_time_starts_with_its_turn() -> None:
    """Waiting in the queue doesn't use up an order's time."""
    world = World(settings=IssuanceSettings(parallel_orders=1))
    world.ca.slow = True
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    for _ in range(30):
        await settle(30)
        world.clock.advance(MINUTE)
    world.issuer.faults.fail("create_order", unavailable(), times=3)
    world.ca.slow = False
    world.ca.complete()

    await world.run_on()

    assert [order.state for order in world.orders] == [OrderState.ISSUED] * 2


async def test_an_order_that_must_fail_is_not_spent_at_the_ca() -> None:
    """What the look before the order finds ends it with its own words; the CA hears nothing of it."""
    world = World()
    forbidden = RefusalError(Reason.DNS_REJECTED, 'CAA of shop.test forbids it: 0 issue "other.test"')
    world.preflight.faults.fail_always("check_order", forbidden)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert world.order.state is OrderState.FAILED
    assert world.order.error == forbidden.refusal
    assert not world.ca.orders
    assert not world.dns.written


async def test_preconditions_are_looked_at_once() -> None:
    """However often the CA has to be asked for an order, the DNS is asked what it thinks of it once."""
    world = World()
    world.issuer.faults.fail("create_order", unavailable(), times=3)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert world.order.state is OrderState.ISSUED
    assert world.preflight.checked == [(world.order.dns_names, world.order.issuer)]
