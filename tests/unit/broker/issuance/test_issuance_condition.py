"""What blocks a profile until a person has acted, and what unblocks it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.issuance.condition import IssuanceCondition
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.model import Order, OrderState
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.issuance import World, caller, issue

_CAA = Refusal(
    Reason.ISSUER_REJECTED, "refused", problems=(ProblemDocument("urn:ietf:params:acme:error:caa", "forbidden", 403),)
)


def epoch_() -> RetryEpoch:
    numbers = itertools.count(1)
    return RetryEpoch(ManualClock(), lambda: f"epoch-{next(numbers)}")


def ended(profile: str, error: Refusal | None, issuer: str = "ca") -> Order:
    now = ManualClock().now()
    state = OrderState.ISSUED if error is None else OrderState.FAILED
    facts = {"profile_hash": "h", "dns_names": (), "public_key_sha256": "k", "csr_der": b"", "request_id": "r"}
    return Order("web1", profile, issuer=issuer, **facts, state=state, error=error, create_time=now, update_time=now)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("error", "blocks"),
    [
        pytest.param(Refusal(Reason.DNS_REJECTED, "the token was revoked"), True, id="dns-token-revoked"),
        pytest.param(_CAA, True, id="caa"),
        pytest.param(Refusal(Reason.DNS_UNAVAILABLE, "away"), False, id="dns-away"),
        pytest.param(Refusal(Reason.ISSUER_UNAVAILABLE, "away"), False, id="ca-away"),
        pytest.param(Refusal(Reason.ISSUER_RATE_LIMITED, "slow down"), False, id="ca-limits"),
        pytest.param(Refusal(Reason.ISSUER_REJECTED, "a challenge failed"), False, id="challenge-failed"),
    ],
)
def test_what_only_a_person_mends_blocks(error: Refusal, blocks: bool) -> None:
    """Everything else may pass by itself, and is told by other alarms."""
    condition = IssuanceCondition(FakeMeter(), epoch_())
    condition.order_ended(ended("web", error))
    assert bool(condition.blocked(["web"])) is blocks


def test_a_certificate_or_the_end_of_the_profile_unblocks() -> None:
    """An order that succeeds, or a policy without the profile, ends the alarm; a passing failure says nothing."""
    condition = IssuanceCondition(FakeMeter(), epoch_())
    for profile in ("web", "mail"):
        condition.order_ended(ended(profile, _CAA))
    condition.order_ended(ended("web", Refusal(Reason.DNS_UNAVAILABLE, "away")))
    assert condition.blocked(["web", "mail"]) == {"web", "mail"}
    condition.order_ended(ended("web", None))
    assert condition.blocked(["web", "mail"]) == {"mail"}
    assert condition.blocked(["web"]) == frozenset()


async def test_orders_tell_it() -> None:
    """A DNS token that is refused blocks the profile of the order, and its mending unblocks it."""
    world = World()
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on()
    assert authority.blocked(["shop"]) == {"shop"}
    await authority.issue(caller(), issue("two", wait=timedelta()))
    await world.run_on()
    assert authority.blocked(["shop"]) == frozenset()


async def test_the_alarm_outlives_a_restart() -> None:
    """A start knows from the orders before which profiles wait for a person; what passes by itself hides nothing."""
    world = World()
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on()
    world.clock.advance(timedelta(hours=1))
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_REJECTED, "a challenge failed"))
    await authority.issue(caller(), issue("two", wait=timedelta()))
    await world.run_on()

    other = world.fork()
    again = await other.started()

    assert again.blocked(["shop", "mail"]) == {"shop"}
    assert other.meter.levels[metrics.PROFILES_BLOCKED] == 1
    await again.issue(caller(), issue("three"))
    assert again.blocked(["shop", "mail"]) == frozenset()


async def test_a_start_takes_what_failed_last_for_trouble_and_wakes_nobody() -> None:
    """A certificate of before the failures is no sign that anything was mended."""
    world = World()
    authority = await world.started()
    await authority.issue(caller(), issue("one"))
    world.clock.advance(timedelta(hours=1))
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_REJECTED, "a challenge failed"))
    await authority.issue(caller(), issue("two"))
    other = world.fork()
    epoch = other.epoch.current
    again = await other.started()
    other.clock.advance(timedelta(minutes=1))
    assert again.in_trouble
    assert other.epoch.current == epoch
    await again.issue(caller(), issue("three"))
    assert not again.in_trouble
    assert other.epoch.current != epoch


async def test_a_profile_that_was_edited_since_is_not_blocked() -> None:
    """Its last order was under other settings: nothing is known of it."""
    world = World()
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    authority = await world.started()
    await authority.issue(caller(), issue("one", wait=timedelta()))
    await world.run_on()
    other = world.fork()
    other.change_profile(hash="edited")
    assert (await other.started()).blocked(["shop"]) == frozenset()


@pytest.mark.parametrize(
    ("orders", "moves"),
    [
        pytest.param([("web", "ca", Reason.DNS_REJECTED), ("web", "ca", None)], True, id="a profile's dns"),
        pytest.param(
            [("web", "ca", Reason.ISSUER_UNAVAILABLE), ("mail", "ca", None)], True, id="an issuer that was away"
        ),
        pytest.param([("web", "ca", Reason.DNS_UNAVAILABLE), ("mail", "ca", None)], False, id="another profile's"),
        pytest.param([("web", "ca", Reason.ISSUER_UNAVAILABLE), ("mail", "b", None)], False, id="another issuer's"),
        pytest.param([("web", "ca", Reason.KEY_REUSED), ("web", "ca", None)], False, id="its caller's own fault"),
        pytest.param([("web", "ca", None), ("web", "ca", None)], False, id="no trouble"),
    ],
)
def test_what_works_again_has_those_who_wait_ask(orders: list[tuple[str, str, Reason | None]], moves: bool) -> None:
    """The retry epoch moves when a certificate comes for what was in trouble before, and for nothing else."""
    clock = ManualClock()
    numbers = itertools.count(1)
    epoch = RetryEpoch(clock, lambda: f"epoch-{next(numbers)}")
    clock.advance(timedelta(minutes=1))
    condition = IssuanceCondition(FakeMeter(), epoch)
    for profile, issuer, reason in orders:
        condition.order_ended(ended(profile, reason and Refusal(reason, "away"), issuer))
    assert (epoch.current != "epoch-1") is moves


def test_what_was_well_before_the_trouble_is_no_news() -> None:
    """A certificate of another profile ends the trouble of their issuer only if it came after it."""
    clock = ManualClock()
    condition = IssuanceCondition(FakeMeter(), epoch_())
    well = ended("mail", None)
    away = replace(ended("web", Refusal(Reason.ISSUER_UNAVAILABLE, "away")), update_time=clock.now() + timedelta(1))
    condition.recall([away])
    condition.recall([well])
    assert condition.in_trouble
    condition.recall([replace(well, update_time=away.update_time + timedelta(1))])
    condition.recall([replace(ended("web", None), update_time=away.update_time + timedelta(1))])
    assert not condition.in_trouble
    assert not condition.changed
