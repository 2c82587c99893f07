"""What blocks a profile until a person has acted, and what unblocks it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.issuance.condition import IssuanceCondition
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError
from tests.fakes.audit import FakeMeter
from tests.support.issuance import World, caller, issue

_CAA = Refusal(
    Reason.ISSUER_REJECTED, "refused", problems=(ProblemDocument("urn:ietf:params:acme:error:caa", "forbidden", 403),)
)


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
    condition = IssuanceCondition(FakeMeter())
    condition.order_ended("web", error)
    assert bool(condition.blocked(["web"])) is blocks


def test_a_certificate_or_the_end_of_the_profile_unblocks() -> None:
    """An order that succeeds, or a policy without the profile, ends the alarm; a passing failure says nothing."""
    condition = IssuanceCondition(FakeMeter())
    for profile in ("web", "mail"):
        condition.order_ended(profile, _CAA)
    condition.order_ended("web", Refusal(Reason.DNS_UNAVAILABLE, "away"))
    assert condition.blocked(["web", "mail"]) == {"web", "mail"}
    condition.order_ended("web", None)
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
