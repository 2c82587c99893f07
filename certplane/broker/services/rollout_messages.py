"""Rollouts, their rings and their certificates as messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.budget.forecast import Forecast
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.desk import PlannedRollout
from certplane.broker.rollouts.model import (
    ItemState,
    Revoke,
    Ring,
    RingState,
    Rollout,
    RolloutAction,
    RolloutItem,
    RolloutSpec,
    StateCount,
    Success,
)
from certplane.broker.rollouts.timing import cut_bakes
from certplane.broker.services.convert import REVOCATION_NUMBERS
from certplane.broker.services.rollouts_convert import ITEM_STATES, STATES
from certplane.fleet_report.messages import HEALTH_NUMBERS
from certplane.rpc.times import put_time
from certplane.runtime.health import HealthWord
from certplane.runtime.text import printable
from certplane.v1 import budget_pb2, fleet_pb2
from certplane.v1 import rollout_pb2 as pb

_MOST_REASON: Final = 500
_MOST_STATE_REASON: Final = 2000
_MOST_SHOWN: Final = 1000
"""Texts of one field of a selection: an incident's names each certificate."""
_HOSTS: Final = 10

RING_STATES: Final = {state: pb.Rollout.Ring.State.Value(f"STATE_{state.name}") for state in RingState}
_ACTIONS: Final = {action: pb.RolloutSpec.Action.Value(f"ACTION_{action.name}") for action in RolloutAction}
_SUCCESSES: Final = {success: pb.RolloutSpec.Success.Value(f"SUCCESS_{success.name}") for success in Success}
_REVOKES: Final = {revoke: pb.RolloutSpec.Revoke.Value(f"REVOKE_{revoke.name}") for revoke in Revoke}

ForecastMessage = Callable[[Forecast], budget_pb2.Forecast]
"""What `BudgetService` shows of a forecast."""


def rollout_message(
    rollout: Rollout,
    failed: Iterable[pb.RolloutItem] = (),
    forecast: budget_pb2.Forecast | None = None,
) -> pb.Rollout:
    """A rollout with its rings."""
    counts: Counter[ItemState] = Counter()
    for ring in rollout.rings:
        counts.update({each.state: each.count for each in ring.counts})
    message = pb.Rollout(
        rollout_id=rollout.rollout_id,
        spec=spec_message(rollout.spec),
        state=STATES[rollout.state],
        state_reason=printable(rollout.state_reason, _MOST_STATE_REASON),
        rings=map(_ring_message, rollout.rings),
        item_counts=_counts([StateCount(state, counts[state]) for state in ItemState if counts[state]]),
        host_count=rollout.host_count,
        created_by=rollout.created_by,
        approved_by=rollout.approved_by,
        revoked_count=rollout.revoked_count,
        unrevoked_count=rollout.unrevoked_count,
        failed=failed,
        incident_id=rollout.incident_id,
        forecast=forecast,
    )
    for time, stamp in (
        (rollout.create_time, message.create_time),
        (rollout.start_time, message.start_time),
        (rollout.update_time, message.update_time),
        (rollout.end_time, message.end_time),
        (None if rollout.state.has_ended else rollout.expected_end_time, message.expected_end_time),
    ):
        _put(time, stamp)
    return message


def spec_message(spec: RolloutSpec) -> pb.RolloutSpec:
    """What a rollout does."""
    message = pb.RolloutSpec(
        selection=selection_message(spec.selection),
        action=_ACTIONS[spec.action],
        issuer=spec.issuer,
        success=_SUCCESSES[spec.success],
        max_percent_of_name=spec.max_percent_of_name,
        revoke=_REVOKES[spec.revoke],
        revocation_reason=REVOCATION_NUMBERS[spec.revocation_reason],
        reason=spec.reason,
    )
    message.halt.failed_hosts, message.halt.failed_percent = spec.halt.failed_hosts, spec.halt.failed_percent
    message.halt.silent_after.FromTimedelta(spec.halt.silent_after)
    _put(spec.deadline, message.deadline)
    for ring in spec.rings:
        one = message.rings.add(name=ring.name, labels=ring.labels, percent=ring.percent, rest=ring.rest)
        if ring.bake:
            one.bake_duration.FromTimedelta(ring.bake)
    return message


def selection_message(selection: Selection) -> fleet_pb2.Selection:
    """Which certificates were asked for; of very many of a kind the first."""
    message = fleet_pb2.Selection(
        all=selection.all,
        hosts=selection.hosts[:_MOST_SHOWN],
        profiles=selection.profiles[:_MOST_SHOWN],
        issuers=selection.issuers[:_MOST_SHOWN],
        certificate_ids=selection.certificate_ids[:_MOST_SHOWN],
        dns_names=selection.dns_names[:_MOST_SHOWN],
        identities=selection.identities,
        labels=selection.labels[:_MOST_SHOWN],
        serial_numbers=selection.serial_numbers[:_MOST_SHOWN],
        public_keys_sha256=selection.public_keys_sha256[:_MOST_SHOWN],
        window_open=selection.window_open,
        incident_id=selection.incident_id,
    )
    _put(selection.issued_before, message.issued_before_time)
    return message


def item_message(item: RolloutItem, ring: str, health: HealthWord | None) -> pb.RolloutItem:
    """One certificate; `health` is of what its host has now, None where that isn't known."""
    message = pb.RolloutItem(
        host=item.host,
        certificate_id=item.certificate_id,
        certificate_name=item.certificate_name,
        ring=ring,
        state=ITEM_STATES[item.state],
        reason=printable(item.reason, _MOST_REASON),
        new_certificate_id=item.new_certificate_id,
    )
    if health is not None:
        message.health = HEALTH_NUMBERS[health]
    _put(item.release_time, message.release_time)
    _put(item.done_time, message.done_time)
    _put(item.revoke_time, message.revoke_time)
    return message


def plan_response(
    planned: PlannedRollout, forecast_message: ForecastMessage | None, now: datetime
) -> pb.PlanRolloutResponse:
    """What a rollout would be."""
    response = pb.PlanRolloutResponse(warnings=planned.warnings, approval=planned.approval)
    if planned.refusal is not None:
        refusal = planned.refusal.refusal
        response.refusal = f"{refusal.reason}: {refusal.message}"
        response.remedy = "; ".join(f"{each.subject}: {each.description}" for each in refusal.violations) or (
            "have somebody do it who has the role, or have the policy give it"
        )
    frozen, rollout = planned.frozen, planned.rollout
    if frozen is None or rollout is None:
        return response
    response.certificate_count, response.host_count = rollout.certificate_count, rollout.host_count
    response.disconnected_host_count = planned.disconnected_count
    response.unable_to_hold_count = planned.unable_count
    _put(rollout.expected_end_time, response.expected_end_time)
    if frozen.forecast is not None and forecast_message is not None:
        response.forecast.CopyFrom(forecast_message(frozen.forecast))
    last = None if frozen.forecast is None else frozen.forecast.last_order_time
    bakes = cut_bakes(rollout.ring_specs, rollout.rings, now, rollout.spec.deadline, last)
    hosts: list[dict[str, None]] = [{} for _ in rollout.rings]
    for item in frozen.items:
        hosts[item.ring][item.host] = None
    for number, ring in enumerate(rollout.rings):
        message = response.rings.add(
            name=ring.name,
            host_count=ring.host_count,
            certificate_count=sum(each.count for each in ring.counts),
            hosts=[*hosts[number]][:_HOSTS],
        )
        message.bake_duration.FromTimedelta(bakes[number])
    return response


def _ring_message(ring: Ring) -> pb.Rollout.Ring:
    message = pb.Rollout.Ring(
        name=ring.name,
        state=RING_STATES[ring.state],
        host_count=ring.host_count,
        item_counts=_counts(ring.counts),
    )
    if ring.bake_cut:
        message.bake_cut.FromTimedelta(ring.bake_cut)
    _put(ring.release_time, message.release_time)
    _put(ring.done_time, message.done_time)
    _put(ring.bake_until, message.bake_until_time)
    return message


def _counts(counts: Sequence[StateCount]) -> list[pb.Rollout.ItemCount]:
    return [pb.Rollout.ItemCount(state=ITEM_STATES[each.state], certificate_count=each.count) for each in counts]


def _put(time: datetime | None, stamp: Timestamp) -> None:
    if time is not None:
        put_time(time, stamp)
