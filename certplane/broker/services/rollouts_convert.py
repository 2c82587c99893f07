"""What operators ask of rollouts, as values. What a spec means is `rollouts.spec`'s to judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.rollouts.model import (
    Halt,
    ItemState,
    Revoke,
    RingSpec,
    RolloutAction,
    RolloutSpec,
    RolloutState,
    Success,
)
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace
from certplane.broker.services.convert import cursor_from_token, invalid_request, revocation_reason
from certplane.broker.services.filter_convert import known_words
from certplane.broker.services.fleet_convert import Named, selection_of, text_of
from certplane.rpc.times import span_of, time_of
from certplane.v1 import rollout_pb2 as pb

_Word = TypeVar("_Word")

_ACTIONS: Final[Mapping[int, RolloutAction]] = {
    pb.RolloutSpec.ACTION_UNSPECIFIED: RolloutAction.RENEW,
    pb.RolloutSpec.ACTION_RENEW: RolloutAction.RENEW,
    pb.RolloutSpec.ACTION_REKEY: RolloutAction.REKEY,
    pb.RolloutSpec.ACTION_MOVE: RolloutAction.MOVE,
}
_SUCCESSES: Final[Mapping[int, Success]] = {
    pb.RolloutSpec.SUCCESS_UNSPECIFIED: Success.SERVED,
    pb.RolloutSpec.SUCCESS_SERVED: Success.SERVED,
    pb.RolloutSpec.SUCCESS_INSTALLED: Success.INSTALLED,
}
_REVOKES: Final[Mapping[int, Revoke]] = {
    pb.RolloutSpec.REVOKE_UNSPECIFIED: Revoke.NEVER,
    pb.RolloutSpec.REVOKE_NEVER: Revoke.NEVER,
    pb.RolloutSpec.REVOKE_AFTER_SERVED: Revoke.AFTER_SERVED,
}
STATES: Final = {state: pb.Rollout.State.Value(f"STATE_{state.name}") for state in RolloutState}
ITEM_STATES: Final = {state: pb.RolloutItem.State.Value(f"STATE_{state.name}") for state in ItemState}
_STATES: Final[Mapping[int, RolloutState]] = {int(number): state for state, number in STATES.items()}
_ITEM_STATES: Final[Mapping[int, ItemState]] = {int(number): state for state, number in ITEM_STATES.items()}


def spec_of(message: pb.RolloutSpec, named: Named) -> RolloutSpec:
    """What a rollout is to do, by what hosts are called at this moment.

    Raises:
        EdgeRefusalError: REQUEST_INVALID: a field that is missing, or that has no value of its kind.
    """
    if not message.HasField("selection"):
        raise invalid_request("spec.selection", "is required")
    return RolloutSpec(
        selection=selection_of(message.selection, named),
        reason=text_of("spec.reason", message.reason),
        action=_word("spec.action", message.action, _ACTIONS),
        issuer=message.issuer,
        rings=tuple(_ring_of(number, ring) for number, ring in enumerate(message.rings)),
        success=_word("spec.success", message.success, _SUCCESSES),
        max_percent_of_name=message.max_percent_of_name,
        halt=_halt_of(message.halt),
        deadline=_time("spec.deadline", message.deadline) if message.HasField("deadline") else None,
        revoke=_word("spec.revoke", message.revoke, _REVOKES),
        revocation_reason=revocation_reason(message.revocation_reason, field="spec.revocation_reason"),
    )


def _ring_of(number: int, message: pb.RingSpec) -> RingSpec:
    bake = timedelta()
    if message.HasField("bake_duration"):
        bake = _span(f"spec.rings[{number}].bake_duration", message.bake_duration)
    return RingSpec(message.name, tuple(message.labels), message.percent, message.rest, bake)


def _halt_of(message: pb.RolloutSpec.Halt) -> Halt:
    """What isn't said is the default; one that says a share alone has that bound alone."""
    default = Halt()
    silent_after = default.silent_after
    if message.HasField("silent_after"):
        silent_after = _span("spec.halt.silent_after", message.silent_after)
    hosts = message.failed_hosts or (0 if message.failed_percent else default.failed_hosts)
    return Halt(hosts, message.failed_percent, silent_after)


def rollout_states_of(numbers: Iterable[int]) -> frozenset[RolloutState]:
    """The states of a list.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    return known_words("states", numbers, _STATES)


def item_states_of(numbers: Iterable[int]) -> frozenset[ItemState]:
    """The states of a list of certificates.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    return known_words("states", numbers, _ITEM_STATES)


# Places in lists.


def rollout_cursor(place: RolloutPlace) -> str:
    """Where the next page of rollouts begins, as a cursor."""
    return f"{int(place.has_ended)}:{place.create_time.isoformat()}:{place.rollout_id}"


def rollout_place(token: str) -> RolloutPlace | None:
    """Behind which rollout a page begins; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return None
    ended, _, rest = cursor_from_token(token).partition(":")
    moment, _, rollout_id = rest.rpartition(":")
    try:
        time = datetime.fromisoformat(moment)
    except ValueError:
        raise _no_token() from None
    if ended not in {"0", "1"} or not rollout_id or time.tzinfo is None:
        raise _no_token()
    return RolloutPlace(ended == "1", time, rollout_id)


def item_cursor(place: ItemPlace) -> str:
    """Where the next page of certificates begins, as a cursor."""
    return f"{place.place}:{place.certificate_id}"


def item_place(token: str) -> ItemPlace | None:
    """Behind which certificate a page begins; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return None
    place, _, certificate_id = cursor_from_token(token).partition(":")
    if not (place.isdecimal() and certificate_id):
        raise _no_token()
    return ItemPlace(int(place), certificate_id)


def _no_token() -> Exception:
    return invalid_request("page_token", "is not a token of this broker")


def _word(field: str, number: int, table: Mapping[int, _Word]) -> _Word:
    (word,) = known_words(field, [number], table)
    return word


def _time(field: str, stamp: Timestamp) -> datetime:
    time = time_of(stamp)
    if time is None:
        raise invalid_request(field, "is no moment between the years 1 and 9999")
    return time


def _span(field: str, duration: Duration) -> timedelta:
    span = span_of(duration)
    if span is None:
        raise invalid_request(field, "must be a duration that isn't negative")
    return span
