"""Several issuers: which failures move an order on, which never do, and how the first issuer comes back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType
from certplane.broker.issuance.outcome import fails_over
from certplane.broker.model import DenyEntry, OrderCause, OrderState, RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError, Violation
from certplane.fleet_report.model import RenewalCause
from tests.fakes.issuer import FakeCa, FakeIssuer
from tests.support.issuance import World, caller, issue, settle, unavailable

_URN = "urn:ietf:params:acme:error:"


@pytest.fixture
def world() -> World:
    """A world whose profile may have certificates of two issuers, the ordinary one first."""
    made = World()
    made.others.append(FakeIssuer(FakeCa(made.clock, made.dns), name="second", directory="https://second.test/dir"))
    made.change_profile(issuers=("fake-ca", "second"))
    return made


def second(world: World) -> FakeIssuer:
    return world.others[0]


def unreachable() -> RefusalError:
    return RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA doesn't answer")


def limited(subject: str = "account") -> RefusalError:
    return RefusalError(
        Reason.ISSUER_RATE_LIMITED,
        "too many orders",
        retry_after=timedelta(hours=3),
        violations=[Violation(subject, "too many")],
    )


def rejected(problem: str) -> RefusalError:
    return RefusalError(
        Reason.ISSUER_REJECTED, "refused", problems=[ProblemDocument(_URN + problem, "the CA's words", 403)]
    )


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        pytest.param(unreachable(), True, id="out-of-reach"),
        pytest.param(limited(), True, id="account-limited"),
        pytest.param(limited("name_set"), True, id="name-set-limited"),
        pytest.param(rejected("userActionRequired"), True, id="account-wants-a-person"),
        pytest.param(rejected("externalAccountRequired"), True, id="account-wants-a-binding"),
        pytest.param(rejected("rejectedIdentifier"), False, id="name-refused"),
        pytest.param(rejected("caa"), False, id="caa-forbids"),
        pytest.param(rejected("unauthorized"), False, id="challenge-failed"),
        pytest.param(rejected("badPublicKey"), False, id="key-refused"),
        pytest.param(RefusalError(Reason.DNS_UNAVAILABLE, "no server"), False, id="dns-away"),
        pytest.param(RefusalError(Reason.DNS_REJECTED, "no zone"), False, id="dns-refuses"),
        pytest.param(RefusalError(Reason.STORE_UNAVAILABLE, "disk"), False, id="own-store"),
    ],
)
def test_the_class_of_a_failure_decides(error: RefusalError, moves: bool) -> None:
    """Out of reach, limited, or an account that wants a person: another issuer may do; nothing about names does."""
    assert fails_over(error.refusal) is moves


async def test_an_issuer_that_stays_away_is_left(world: World) -> None:
    """One order, whose waiting callers get the certificate of the second issuer; the log says so."""
    world.issuer.faults.fail_always("create_order", unreachable())
    authority = await world.started()
    waiting = await authority.issue(caller(), issue(wait=timedelta()))
    assert waiting.order.issuer == "fake-ca"
    await world.run_on(timedelta(seconds=2))
    result = await authority.get_order(caller(), "r", world.order.order_id)
    assert (result.order.state, result.order.issuer) == (OrderState.ISSUED, "second")
    assert result.certificate is not None
    assert result.certificate.issuer == "second"
    assert world.issuer.faults.count("create_order") > 2
    (moved,) = (event for event in world.database.events if event.event_type is AuditEventType.ISSUER_FAILED_OVER)
    assert (moved.issuer_name, moved.reason_code) == ("fake-ca", "ISSUER_UNAVAILABLE")
    (issued,) = (event for event in world.database.events if event.event_type is AuditEventType.CERTIFICATE_ISSUED)
    assert (issued.issuer_name, issued.issuer_directory) == ("second", "https://second.test/dir")
    assert world.meter.total(metrics.FAILOVERS) == 1


@pytest.mark.parametrize("seen", [True, False], ids=["the deny-list alone", "its order was ended too"])
async def test_an_order_of_whom_is_shut_out_moves_nowhere(world: World, seen: bool) -> None:
    """While its first issuer is away: the next one never hears of it."""
    world.issuer.faults.fail_always("create_order", unreachable())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await settle()
    entry = DenyEntry(name="web1.test")
    if seen:
        world.database.shut_out(entry)
    else:
        world.database.deny(entry)
    await world.run_on(timedelta(seconds=2))
    assert world.order.error is not None
    assert world.order.error.reason is Reason.IDENTITY_REVOKED
    assert world.others[0].faults.calls == []


async def test_a_moment_of_absence_moves_nobody(world: World) -> None:
    """An issuer that is back within half a minute keeps the order."""
    world.issuer.faults.fail("create_order", unreachable(), times=3)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "fake-ca")


async def test_an_issuer_that_says_it_stays_away_is_believed(world: World) -> None:
    """A 503 with minutes to wait moves the order at once: nobody sleeps through them beside an issuer that serves."""
    world.issuer.faults.fail_always("create_order", unavailable(retry_after=timedelta(minutes=5)))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await settle()
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "second")
    assert world.issuer.faults.count("create_order") == 1


async def test_a_limit_moves_at_once_and_later_orders_go_straight_on(world: World) -> None:
    """What the first issuer said holds for everybody whom it concerns: it isn't asked again before its time."""
    world.issuer.faults.fail("create_order", limited())
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    await authority.issue(caller(), issue("two", wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    assert [order.issuer for order in world.orders] == ["second", "second"]
    assert world.issuer.faults.count("create_order") == 1


@pytest.mark.parametrize("failure", [pytest.param(unreachable, id="away"), pytest.param(limited, id="limited")])
async def test_the_first_issuer_is_used_again_when_it_recovers(world: World, failure: object) -> None:
    """After the time that it is left alone the next order goes to it."""
    world.issuer.faults.fail("create_order", failure(), times=30)  # type: ignore[operator]  # one of the two above
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert world.order.issuer == "second"
    world.issuer.faults.heal()
    world.clock.advance(timedelta(hours=4))
    await authority.issue(caller(), issue("two", wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert [order.issuer for order in world.orders] == ["second", "fake-ca"]


async def test_what_the_first_says_of_a_name_is_not_asked_elsewhere(world: World) -> None:
    """A name that the CA refuses ends the order: no shopping for a CA that doesn't look."""
    world.issuer.faults.fail("create_order", rejected("rejectedIdentifier"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on()
    assert (world.order.state, world.order.issuer) == (OrderState.FAILED, "fake-ca")
    assert not second(world).faults.calls


async def test_half_way_the_first_order_is_given_up_and_its_records_go(world: World) -> None:
    """Leaving after the records were written abandons the order at the CA, audited, and cleans up in the end."""
    world.issuer.faults.fail_always("answer_challenges", unreachable())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "second")
    assert world.logged(AuditEventType.ORDER_ABANDONED) == 1
    assert world.order.txt_records == ()
    assert not world.dns.visible()
    assert world.ca.finalisations == 0


@pytest.mark.parametrize("stuck", [pytest.param(False, id="removed"), pytest.param(True, id="can't-be-removed")])
async def test_records_of_the_order_that_was_left_make_room(world: World, stuck: bool) -> None:
    """Their values are gone before the next ones are written: acme-dns keeps two. What can't be removed holds nothing up."""
    second(world).ca.create(("other.test",))  # so that its values are others than the first one's
    world.issuer.faults.fail_always("answer_challenges", unreachable())
    gate = second(world).faults.hold("answer_challenges")
    if stuck:
        world.solver.faults.fail("remove", RefusalError(Reason.DNS_UNAVAILABLE, "busy"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    for _ in range(60):
        await settle(60)
        if "answer_challenges" in second(world).faults.calls:
            break
        world.clock.advance(timedelta(seconds=2))
    assert len(world.dns.visible()) == (4 if stuck else 2)
    assert len(world.order.txt_records) == (4 if stuck else 2)
    gate.set()
    await world.run_on(timedelta(seconds=2))
    assert (world.order.state, world.order.issuer, world.order.txt_records) == (OrderState.ISSUED, "second", ())
    assert not world.dns.visible()


async def test_after_the_finalisation_nothing_moves(world: World) -> None:
    """Where the first may have the CSR, only its word ends the order: no key gets two certificates."""
    world.issuer.faults.fail_after("finalize", unreachable())
    world.issuer.faults.fail("get_order", unreachable(), times=20)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(minutes=1))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "fake-ca")
    assert not second(world).faults.calls
    assert world.ca.finalisations == 1


@pytest.mark.parametrize("problem", ["userActionRequired", "externalAccountRequired"])
async def test_what_the_ca_wants_of_the_account_loses_no_certificate(world: World, problem: str) -> None:
    """New terms between finalisation and certificate: the order is known as ever, its key isn't spent, it is waited for."""
    world.issuer.faults.fail_after("finalize", unreachable())
    world.issuer.faults.fail("get_order", rejected(problem), times=3)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(minutes=1))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "fake-ca")
    assert world.ca.finalisations == 1
    assert not second(world).faults.calls


async def test_where_all_are_out_the_first_ones_word_is_told(world: World) -> None:
    """Each issuer is tried once; then the order ends with what the last one said, and later ones aren't spent."""
    for issuer in (world.issuer, second(world)):
        issuer.faults.fail("create_order", limited(), times=5)
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert world.order.state is OrderState.FAILED
    assert world.order.error is not None
    assert world.order.error.reason is Reason.ISSUER_RATE_LIMITED
    assert [each.faults.count("create_order") for each in (world.issuer, second(world))] == [1, 1]


async def test_the_cache_knows_certificates_of_each_listed_issuer(world: World) -> None:
    """A certificate that the second issued answers again while it is fresh, and says whose it is."""
    world.issuer.faults.fail("create_order", limited())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    again = await authority.issue(caller(), issue(wait=timedelta()))
    assert again.source == "cache"
    assert again.certificate is not None
    assert again.certificate.issuer == "second"
    hits = [event for event in world.database.events if event.event_type is AuditEventType.CERTIFICATE_CACHE_HIT]
    assert [event.issuer_name for event in hits] == ["second"]


async def test_the_newest_certificate_answers_whoever_issued_it(world: World) -> None:
    """A renewal of a kept key that the second issuer made is not hidden by what the first one had issued before.

    Else each repetition of the renewal, after a lost answer say, would be one more certificate for the key.
    """
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    (first,) = world.database.certificates
    world.clock.advance(timedelta(days=75))
    world.issuer.faults.fail("create_order", limited())
    await authority.issue(caller(), issue(wait=timedelta(), replaces=first))
    await world.run_on(timedelta(seconds=1))
    for replaces in (first, ""):
        again = await authority.issue(caller(), issue(wait=timedelta(), replaces=replaces))
        assert (again.source, again.order.issuer) == ("cache", "second")
    assert len(world.orders) == 2


async def test_a_long_limit_of_the_last_issuer_keeps_no_order_from_the_first(world: World) -> None:
    """The first is away for minutes, the second limits us for a week: the next order may be asked for in minutes."""
    week = RefusalError(
        Reason.ISSUER_RATE_LIMITED,
        "too many certificates for these names",
        retry_after=timedelta(days=7),
        violations=[Violation("name_set", "too many")],
    )
    world.issuer.faults.fail_always("create_order", unreachable())
    second(world).faults.fail_always("create_order", week)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    (failed,) = world.orders
    assert failed.retry_time is not None
    assert failed.retry_time - world.clock.now() <= timedelta(minutes=5)
    assert failed.error is not None
    assert failed.error.retry_after is not None
    assert failed.error.retry_after <= timedelta(minutes=5)
    world.issuer.faults.heal()
    world.clock.advance(timedelta(minutes=6))
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=2))
    assert [(order.state, order.issuer) for order in world.orders] == [
        (OrderState.FAILED, "second"),
        (OrderState.ISSUED, "fake-ca"),
    ]
    assert second(world).faults.count("create_order") == 1


async def test_waiting_for_the_dns_is_not_the_absence_of_the_issuer(world: World) -> None:
    """Records that took a minute to spread and then one lost answer of the CA: the order stays."""
    gate = world.solver.faults.hold("wait_until_visible")
    world.issuer.faults.fail("answer_challenges", unreachable())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await settle()
    world.clock.advance(timedelta(minutes=1))
    gate.set()
    await world.run_on(timedelta(seconds=2))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "fake-ca")


async def test_a_ca_that_validates_slowly_is_not_away_for_the_others(world: World) -> None:
    """One order's names that the CA doesn't finish with may take that order elsewhere in the end, and no other one."""
    world.ca.unhurried = 10**6
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on(timedelta(seconds=20))
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "second")
    world.ca.unhurried = 0
    await authority.issue(caller(), issue("two", wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    assert world.orders[1].issuer == "fake-ca"


async def test_orders_in_line_go_elsewhere_once_one_has_found_the_issuer_away(world: World) -> None:
    """Who waits for its turn to ask an issuer that hangs doesn't have to find that out as well."""
    gate = world.issuer.faults.hold("create_order")
    world.issuer.faults.fail("create_order", unreachable())
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await authority.issue(caller("web2.test"), issue("two", wait=timedelta()))
    await settle()
    world.clock.advance(timedelta(seconds=45))
    gate.set()
    await world.run_on(timedelta(seconds=1))
    assert [order.issuer for order in world.orders] == ["second", "second"]
    assert world.issuer.faults.count("create_order") == 1


async def test_an_account_that_wants_a_person_calls_one_although_the_order_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """While the second issuer serves, nothing fails: only the log can call whoever has to accept the new terms."""
    world.issuer.faults.fail("create_order", rejected("userActionRequired"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    assert world.order.issuer == "second"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any("a person has to act" in message for message in errors)


async def test_a_restart_goes_on_where_the_order_was(world: World) -> None:
    """The issuer that an order moved to is durable: a new process doesn't begin with the first again."""
    world.issuer.faults.fail("create_order", limited())
    gate = second(world).faults.hold("create_order")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await settle(200)
    assert (world.order.issuer, world.order.state.is_open) == ("second", True)
    after = world.fork()
    after.others.append(FakeIssuer(after.ca, name="second"))
    await after.started()
    await after.run_on(timedelta(seconds=1))
    assert (after.order.state, after.order.issuer) == (OrderState.ISSUED, "second")
    assert not after.issuer.faults.calls
    gate.set()
    await world.run_on(timedelta(seconds=1))


async def test_an_issuer_that_was_taken_out_of_the_configuration(world: World) -> None:
    """Its certificates can't be revoked here any more, and that is said."""
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta()))
    await world.run_on(timedelta(seconds=1))
    (certificate,) = world.database.certificates
    del authority._ports.revokers["fake-ca"]  # type: ignore[attr-defined]  # as a restart without it would have it
    with pytest.raises(RefusalError, match="fake-ca"):
        await authority.revoke(caller(), "r", certificate, RevocationReason.SUPERSEDED)


def test_a_refusal_without_a_scope_that_is_known_stays() -> None:
    """Whatever nobody foresaw is no reason to ask elsewhere."""
    assert not fails_over(Refusal(Reason.INTERNAL, "?"))


async def moving(world: World, to_issuer: str) -> str:
    """A certificate of the first issuer that a rollout moves elsewhere; its id."""
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(timedelta(hours=1))
    record = first.certificate
    plan = RenewalPlan(
        record.certificate_id,
        record.identity,
        world.clock.now(),
        RenewalCause.OPERATOR,
        rollout_id="r-1",
        hold_activation=True,
        to_issuer=to_issuer,
    )
    await world.plans.set_plans([plan])
    return record.certificate_id


async def test_what_a_rollout_moves_is_ordered_where_it_moves_to(world: World) -> None:
    """Though the first issuer is well; the orders' events name the rollout."""
    replaced = await moving(world, "second")
    result = await (await world.started()).issue(caller(), issue("two", replaces=replaced))
    assert result.certificate is not None
    assert (result.certificate.issuer, result.order.cause) == ("second", OrderCause.OPERATOR)
    named = [(event.event_type, event.issuer_name) for event in world.database.events if event.rollout_id == "r-1"]
    assert named == [
        (AuditEventType.CERTIFICATE_AUTHORIZED, "second"),
        (AuditEventType.CERTIFICATE_ISSUED, "second"),
        (AuditEventType.CERTIFICATE_DELIVERED, "second"),
    ]


async def test_what_a_rollout_moves_goes_nowhere_else(world: World) -> None:
    """A CA that is being left isn't to be trusted any more, perhaps: the order waits, or fails, and the host asks again."""
    replaced = await moving(world, "second")
    world.others[0].faults.fail_always("create_order", limited())
    result = await (await world.started()).issue(caller(), issue("two", replaces=replaced))
    assert result.order.state is OrderState.FAILED
    assert result.order.issuer == "second"
    assert [event for event in world.database.events if event.event_type is AuditEventType.ISSUER_FAILED_OVER] == []


async def test_where_policy_no_longer_lets_it_move_the_host_gets_a_certificate_all_the_same(world: World) -> None:
    """From the issuer that it has: the rollout says that it didn't move."""
    replaced = await moving(world, "third")
    result = await (await world.started()).issue(caller(), issue("two", replaces=replaced))
    assert result.certificate is not None
    assert result.certificate.issuer == "fake-ca"
