"""Who is in which ring, and what is wrong with what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.model import Halt, RingSpec, RolloutAction
from certplane.broker.rollouts.overrule import overruled, overruled_text
from certplane.broker.rollouts.rings import RingHost, assign
from certplane.broker.rollouts.spec import check, check_assignment, standing_rings, warnings, without_empty
from certplane.broker.standing_rules import RingRule
from certplane.errors import Reason, RefusalError
from tests.support.rollouts import MINUTE, START, a_rollout, a_spec, an_item

CANARY, TEN, HALF, REST = (
    RingSpec("canary", ("ring=canary",)), RingSpec("ten", percent=10), RingSpec("half", percent=50), RingSpec("rest", rest=True),
)  # fmt: skip


def hosts(count: int, canaries: int = 0, names: int = 1) -> list[RingHost]:
    """So many, of which the first have a label; they serve names in turn."""
    return [
        RingHost(f"h{n:03}", {"ring": "canary", "dc": f"d{n % 2}"} if n < canaries else {}, (f"n{n % names}.example",))
        for n in range(count)
    ]


def sizes(rings: Sequence[RingSpec], of: Sequence[RingHost]) -> list[int]:
    """Hosts of each ring."""
    found = assign(rings, of)
    return [[*found.ring_of.values()].count(number) for number in range(len(rings))]


def test_labels_shares_and_the_rest() -> None:
    """A share is of all hosts, from those that are left."""
    assert sizes((CANARY, TEN, HALF, REST), hosts(100, 3)) == [3, 10, 50, 37]
    assert sizes((CANARY, HALF, HALF, REST), hosts(10, 4)) == [4, 5, 1, 0]
    assert sizes((TEN, REST), hosts(3)) == [1, 2], "rounded up"
    assert sizes((CANARY, TEN, REST), []) == [0, 0, 0]


def test_all_labels_of_a_ring_are_wanted() -> None:
    """Not one of them."""
    found = assign((RingSpec("both", ("ring=canary", "dc=d1")), REST), hosts(10, 4))
    assert [name for name, ring in found.ring_of.items() if ring == 0] == ["h001", "h003"]


def test_a_share_is_picked_evenly() -> None:
    """Of hosts that serve ten things, ten each, a tenth has one of each."""
    of = hosts(100, names=10)
    found = assign((TEN, REST), of)
    first = [host.dns_names for host in of if found.ring_of[host.host] == 0]
    assert len(set(first)) == len(first) == 10


def test_who_is_picked_twice_left_out_or_missing() -> None:
    """All of it is said."""
    found = assign((CANARY, RingSpec("again", ("ring=canary",)), RingSpec("no", ("ring=none",)), TEN), hosts(20, 2))
    assert found.overlaps == {("canary", "again"): 2}
    assert found.empty == ("again", "no")
    assert len(found.left_out) == 16


@given(
    st.lists(st.sampled_from([CANARY, TEN, HALF, RingSpec("all", percent=100)]), max_size=4),
    st.booleans(),
    st.integers(0, 60),
    st.integers(0, 9),
    st.randoms(),
)
def test_each_host_is_in_one_ring_or_left_out(
    rings: list[RingSpec], rest: bool, count: int, canaries: int, rng: Any
) -> None:
    """In whatever order they come."""
    wanted = [*rings, *([REST] if rest else [])]
    of = hosts(count, canaries)
    found = assign(wanted, of)
    assert sorted([*found.ring_of, *found.left_out]) == [host.host for host in of]
    assert not (rest and found.left_out)
    for number, ring in enumerate(wanted):
        have = [*found.ring_of.values()].count(number)
        assert not ring.percent or have <= -(-count * ring.percent // 100)
    rng.shuffle(of)
    assert assign(wanted, of) == found


def test_a_ring_of_nobody_is_refused_where_somebody_was_meant() -> None:
    """The next one would try first what it is there for. Hosts without a ring are refused too."""
    spec = a_spec(rings=(RingSpec("canary", ("ring=canray",)), TEN))
    with pytest.raises(RefusalError) as refused:
        check_assignment(spec, assign(spec.rings, hosts(30)))
    problems = {one.subject: one.description for one in refused.value.refusal.violations}
    assert refused.value.refusal.reason is Reason.REQUEST_INVALID
    assert problems == {
        "spec.rings[0]": "no host of the rollout has ring=canray: correct or leave it out",
        "spec.rings": "27 hosts are in no ring (h001, h002, h003, h004, h005, ...): add a last ring that is the rest",
    }


def test_what_an_operator_should_know_of_rings() -> None:
    """Overlaps, and rings that are of nobody by their share."""
    spec = a_spec(rings=(CANARY, RingSpec("two", ("dc=d0",)), RingSpec("all", percent=100), REST))
    assert warnings(spec, assign(spec.rings, hosts(5, 4))) == [
        "2 hosts are picked by the rings canary and two: in canary",
        "ring rest has no host: it is passed",
    ]


def test_standing_rings_leave_nobody_out_and_refuse_nobody() -> None:
    """They were written before anybody knew which hosts it would be."""
    rules = (RingRule("canary", {"ring": "canary", "dc": "d1"}, bake=MINUTE), RingRule("ten", {}, percent=10))
    rings = standing_rings(rules)
    assert rings == (RingSpec("canary", ("dc=d1", "ring=canary"), bake=MINUTE), TEN, REST)
    assert without_empty(rings, assign(rings, hosts(30))) == (TEN, REST)
    assert standing_rings((RingRule("rest", {}, rest=True),)) == (REST,)
    assert standing_rings((RingRule("rest", {}, percent=9),))[-1] == RingSpec("rest.", rest=True)
    assert standing_rings(()) == ()


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"selection": Selection()}, "spec.selection", "selects nothing"),
        ({"selection": Selection(hosts=("a",), identities=True)}, "spec.selection", "can't be of identities"),
        ({"action": RolloutAction.MOVE}, "spec.issuer", "is required to move"),
        ({"issuer": "other"}, "spec.issuer", "is only of a move"),
        ({"reason": " "}, "spec.reason", "is required"),
        ({"reason": "x" * 501}, "spec.reason", "must be printable and at most 500 bytes"),
        ({"reason": "a\nb"}, "spec.reason", "must be printable"),
        ({"max_percent_of_name": 101}, "spec.max_percent_of_name", "must be 1 to 100"),
        ({"deadline": START}, "spec.deadline", "is in the past"),
        ({"revocation_reason": RevocationReason.KEY_COMPROMISE}, "spec.revocation_reason", "is of a revocation"),
        ({"halt": Halt(failed_hosts=-1)}, "spec.halt.failed_hosts", "must be 1 or more"),
        ({"halt": Halt(failed_percent=101)}, "spec.halt.failed_percent", "must be 1 to 100"),
        ({"halt": Halt(failed_hosts=0)}, "spec.halt", "must have a bound"),
        ({"halt": Halt(silent_after=timedelta())}, "spec.halt.silent_after", "must be from 1 minute to 1 day"),
        ({"rings": (TEN,) * 2}, "spec.rings", "has 2 rings with the name 'ten'"),
        ({"rings": (REST, TEN)}, "spec.rings", "must have the rest as its last ring"),
        ({"rings": tuple(replace(TEN, name=f"r{n}") for n in range(21))}, "spec.rings", "must be at most 20"),
        ({"rings": (RingSpec("a b", rest=True),)}, "spec.rings[0]", "must have a name"),
        ({"rings": (RingSpec("a"),)}, "spec.rings[0]", "exactly one of labels, percent and rest"),
        ({"rings": (RingSpec("a", percent=5, rest=True),)}, "spec.rings[0]", "exactly one of"),
        ({"rings": (RingSpec("a", percent=101),)}, "spec.rings[0]", "must have a percent from 1 to 100"),
        ({"rings": (RingSpec("a", percent=-1),)}, "spec.rings[0]", "must have a percent from 1 to 100"),
        ({"rings": (RingSpec("a", ("ring",)),)}, "spec.rings[0]", "has the label 'ring', which must be KEY=VALUE"),
        ({"rings": (RingSpec("a", ("ring=",)),)}, "spec.rings[0]", "must be KEY=VALUE"),
        ({"rings": (RingSpec("a", rest=True, bake=timedelta(days=31)),)}, "spec.rings[0]", "from 0 to 30 days"),
        ({"rings": (RingSpec("a", rest=True, bake=-MINUTE),)}, "spec.rings[0]", "from 0 to 30 days"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_rollout(changes: dict[str, Any], field: str, message: str) -> None:
    """Each by its field, with what to do."""
    with pytest.raises(RefusalError) as refused:
        check(a_spec(**changes), START)
    assert refused.value.refusal.reason is Reason.REQUEST_INVALID
    assert [(one.subject, message in one.description) for one in refused.value.refusal.violations] == [(field, True)]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """A right one is let through."""
    check(a_spec(), START)
    with pytest.raises(RefusalError) as refused:
        check(a_spec(reason="", issuer="x", rings=(RingSpec("", percent=101),)), START)
    assert len(refused.value.refusal.violations) == 4


def test_the_newer_of_two_rollouts_has_a_certificate() -> None:
    """Also what the older one had issued and not brought into use."""
    older, _ = a_rollout(1, 1)
    newer, _ = a_rollout(1, 1, rollout_id="r2", create_time=START + MINUTE)
    newest, _ = a_rollout(1, 1, rollout_id="r3", create_time=START + 2 * MINUTE)
    held = an_item(1, 0, new_certificate_id="n1")
    found = overruled(
        [
            (newer, [an_item(0, 0, "r2"), an_item(5, 0, "r2", certificate_id="n1")]),
            (older, [an_item(0, 0), held, an_item(2, 0)]),
            (newest, [an_item(0, 0, "r3")]),
        ]
    )
    assert found == {("r1", "c000"): "r3", ("r1", "c001"): "r2", ("r2", "c000"): "r3"}
    assert overruled_text("r3") == "the newer rollout r3 has it"
    assert overruled([(older, [held])]) == {}
