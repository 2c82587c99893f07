"""Rollouts as messages, and back; what is no value of its kind is refused with its field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.model import (
    Halt,
    ItemState,
    Revoke,
    Ring,
    RingSpec,
    RingState,
    Rollout,
    RolloutAction,
    RolloutItem,
    RolloutSpec,
    RolloutState,
    StateCount,
    Success,
)
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace
from certplane.broker.services.convert import token_from_cursor
from certplane.broker.services.rollout_messages import item_message, rollout_message, spec_message
from certplane.broker.services.rollouts_convert import (
    item_cursor,
    item_place,
    item_states_of,
    rollout_cursor,
    rollout_place,
    rollout_states_of,
    spec_of,
)
from certplane.errors import RefusalError
from certplane.runtime.health import HealthWord
from certplane.v1 import fleet_pb2, renewal_pb2
from certplane.v1 import rollout_pb2 as pb

NOW = datetime(2026, 11, 29, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPEC = RolloutSpec(
    Selection(
        all=True,
        hosts=("web1.test", "web2.test"),
        profiles=("shop",),
        issuers=("acme",),
        certificate_ids=("c-1",),
        dns_names=("shop.test",),
        serial_numbers=("ab",),
        public_keys_sha256=("ab" * 32,),
        issued_before=NOW,
        window_open=True,
        incident_id="i-1",
    ),
    "ticket 4711",
    RolloutAction.MOVE,
    "second",
    (RingSpec("canary", ("ring=canary",), bake=HOUR), RingSpec("tenth", percent=10), RingSpec("rest", rest=True)),
    Success.INSTALLED,
    25,
    Halt(3, 10, 2 * HOUR),
    NOW + HOUR,
    Revoke.AFTER_SERVED,
    RevocationReason.SUPERSEDED,
)


class Named:
    """Every host is called by its name."""

    def identities(self, name_or_label: str) -> frozenset[str]:
        return frozenset({name_or_label})

    def hosts_with(self, labels: object) -> frozenset[str]:
        return frozenset({"web1.test"})


def test_a_spec_comes_back_as_it_was_asked_for() -> None:
    """Each field of it."""
    assert spec_of(spec_message(SPEC), Named()) == SPEC


def test_what_is_left_out_is_the_default() -> None:
    """One ring of all, halted by one host that fails."""
    asked = pb.RolloutSpec(selection=fleet_pb2.Selection(all=True), reason="drill")
    assert spec_of(asked, Named()) == RolloutSpec(Selection(all=True), "drill")
    asked.halt.failed_percent = 20
    assert spec_of(asked, Named()).halt == Halt(0, 20)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"selection": None}, "spec.selection is required", id="no selection"),
        pytest.param({"reason": ""}, "spec.reason is required", id="no reason"),
        pytest.param({"reason": "a\x1bb"}, "spec.reason must be", id="a reason that isn't printable"),
        pytest.param({"action": 9}, "spec.action has one", id="another action"),
        pytest.param({"success": 9}, "spec.success has one", id="another success"),
        pytest.param({"revoke": 9}, "spec.revoke has one", id="another revoke"),
        pytest.param({"revocation_reason": 9}, "spec.revocation_reason is not", id="another revocation reason"),
        pytest.param({"deadline": Timestamp(seconds=1 << 60)}, "spec.deadline is no moment", id="no time"),
        pytest.param(
            {"rings": [pb.RingSpec(name="a", rest=True, bake_duration=Duration(seconds=-1))]},
            r"spec.rings\[0\].bake_duration must be",
            id="a negative bake time",
        ),
        pytest.param(
            {"halt": pb.RolloutSpec.Halt(silent_after=Duration(seconds=-1))},
            "spec.halt.silent_after must be",
            id="silence",
        ),
        pytest.param(
            {"selection": fleet_pb2.Selection(dns_names=["no name"])}, "selection.dns_names has", id="selection"
        ),
    ],
)
def test_what_is_no_value_is_refused(change: dict[str, object], field: str) -> None:
    """By its field's name."""
    values = {"selection": fleet_pb2.Selection(all=True), "reason": "drill", **change}
    with pytest.raises(RefusalError, match=field):
        spec_of(pb.RolloutSpec(**values), Named())  # type: ignore[arg-type] # by names


def test_a_rollout_with_its_rings() -> None:
    """Times that aren't are left out; certificates are counted over all rings."""
    ring = Ring(
        "canary",
        RingState.BAKING,
        2,
        (StateCount(ItemState.FAILED, 1), StateCount(ItemState.DONE, 1)),
        NOW,
        NOW + HOUR,
        NOW + 2 * HOUR,
        HOUR,
    )
    rollout = Rollout(
        "r-1", "alice.test", "req", SPEC, NOW, NOW, state=RolloutState.RUNNING, state_reason="a\x1bb",
        rings=(ring, Ring("tenth", counts=(StateCount(ItemState.DONE, 2),)), Ring("rest")), host_count=4,
        approved_by="bob.test", start_time=NOW, expected_end_time=NOW + HOUR, revoked_count=1, unrevoked_count=2,
    )  # fmt: skip
    message = rollout_message(rollout)
    assert (message.rollout_id, message.state, message.state_reason) == ("r-1", pb.Rollout.STATE_RUNNING, "a b")
    assert [(each.state, each.certificate_count) for each in message.item_counts] == [
        (pb.RolloutItem.STATE_FAILED, 1),
        (pb.RolloutItem.STATE_DONE, 3),
    ]
    first = message.rings[0]
    assert (first.name, first.state, first.host_count) == ("canary", pb.Rollout.Ring.STATE_BAKING, 2)
    assert (first.bake_cut.ToTimedelta(), first.bake_until_time.ToDatetime(UTC)) == (HOUR, NOW + 2 * HOUR)
    assert (message.revoked_count, message.unrevoked_count, message.approved_by) == (1, 2, "bob.test")
    assert message.expected_end_time.ToDatetime(UTC) == NOW + HOUR
    assert not message.HasField("end_time")
    assert not message.rings[1].HasField("release_time")
    ended = rollout_message(Rollout("r-1", "a", "r", SPEC, NOW, NOW, state=RolloutState.ABORTED, end_time=NOW))
    assert ended.HasField("end_time")
    assert not ended.HasField("expected_end_time")


def test_a_certificate_of_a_rollout() -> None:
    """With the health of what its host has now, where that is known."""
    item = RolloutItem("r-1", "old", "web1.test", "shop", "acme", ("shop.test",), NOW, 0, "shop", ItemState.FAILED, "x")
    message = item_message(item, "canary", HealthWord.FAILING)
    assert (message.host, message.ring, message.state, message.reason) == (
        "web1.test", "canary", pb.RolloutItem.STATE_FAILED, "x"
    )  # fmt: skip
    assert message.health == renewal_pb2.HEALTH_FAILING
    assert item_message(item, "canary", None).health == renewal_pb2.HEALTH_UNSPECIFIED


def test_states_of_a_list() -> None:
    """Each has its word; another number is refused."""
    assert rollout_states_of(range(1, 8)) == {*RolloutState}
    assert item_states_of(range(1, 9)) == {*ItemState}
    for states in (rollout_states_of, item_states_of):
        with pytest.raises(RefusalError, match="states has one that this broker doesn't know"):
            states([99])


def test_a_page_begins_behind_a_place() -> None:
    """Which a token names."""
    rollout, item = RolloutPlace(True, NOW, "r-1"), ItemPlace(3, "c:1")
    assert rollout_place(token_from_cursor(rollout_cursor(rollout))) == rollout
    assert item_place(token_from_cursor(item_cursor(item))) == item
    assert rollout_place("") is None
    assert item_place("") is None


@pytest.mark.parametrize(
    "cursor", ["1", "2:2026-11-29T02:00:00+00:00:r-1", "1:soon:r-1", "1:2026-11-29T02:00:00:r-1", "x:1"]
)
def test_another_token_is_refused(cursor: str) -> None:
    """Whatever it is of."""
    for place in (rollout_place, item_place):
        if place is item_place and cursor.startswith(("1:", "2:")):
            continue  # a place of certificates has any text behind its number
        with pytest.raises(RefusalError, match="page_token is not a token of this broker"):
            place(token_from_cursor(cursor))
