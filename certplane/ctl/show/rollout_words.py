"""What there is to say of a rollout, in words and bars: its states, what it does, in which rings, when it halts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from certplane.rpc.times import span_of
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import rollout_pb2

Rollout = rollout_pb2.Rollout
Item = rollout_pb2.RolloutItem
_Spec = rollout_pb2.RolloutSpec
_Ring = Rollout.Ring


def _words(enum: type) -> dict[int, str]:
    """The states of an enum as people read them."""
    names: Iterable[tuple[str, int]] = enum.items()  # type: ignore[attr-defined]  # of generated enums
    return {number: name.removeprefix("STATE_").lower().replace("_", " ") for name, number in names if number}


STATES: Final = _words(Rollout.State)
RING_STATES: Final = _words(_Ring.State)
ITEM_STATES: Final = _words(Item.State)
ENDED: Final = (Rollout.STATE_COMPLETED, Rollout.STATE_ABORTED)
BAD_ITEMS: Final = (Item.STATE_FAILED, Item.STATE_SILENT)

_STATE_STYLES: Final[Mapping[int, Style]] = {
    Rollout.STATE_AWAITING_APPROVAL: Style.WARNING,
    Rollout.STATE_PAUSED: Style.WARNING,
    Rollout.STATE_HALTED: Style.BAD,
    Rollout.STATE_COMPLETED: Style.GOOD,
}
_RING_STYLES: Final[Mapping[int, Style]] = {_Ring.STATE_FAILED: Style.BAD, _Ring.STATE_DONE: Style.GOOD}
_ITEM_STYLES: Final[Mapping[int, Style]] = {
    Item.STATE_FAILED: Style.BAD,
    Item.STATE_SILENT: Style.BAD,
    Item.STATE_DONE: Style.GOOD,
    Item.STATE_SKIPPED: Style.DIM,
}
_BAR: Final = (
    (Item.STATE_DONE, "#"),
    (Item.STATE_FAILED, "!"),
    (Item.STATE_SILENT, "?"),
    (Item.STATE_RELEASED, ">"),
    (Item.STATE_HELD, "="),
    (Item.STATE_REQUESTED, "-"),
    (Item.STATE_WAITING, "."),
    (Item.STATE_SKIPPED, "x"),
)
"""A bar's characters, in the order of the bar: it reads without colours, and in any encoding."""
LEGEND: Final = "# done  ! failed  ? silent  > released  = held  - requested  . waiting  x skipped"


def state_text(rollout: Rollout) -> str:
    """Where it is, and why."""
    word = STATES.get(rollout.state, f"state {rollout.state}")
    return f"{word}: {rollout.state_reason}" if rollout.state_reason else word


def state_style(rollout: Rollout) -> Style:
    """Its colour."""
    return _STATE_STYLES.get(rollout.state, Style.PLAIN)


def ring_word(ring: _Ring) -> str:
    """Where a ring is."""
    return RING_STATES.get(ring.state, f"state {ring.state}")


def ring_style(ring: _Ring) -> Style:
    """Its colour."""
    return _RING_STYLES.get(ring.state, Style.PLAIN)


def item_word(state: int) -> str:
    """How far a certificate is."""
    return ITEM_STATES.get(state, f"state {state}")


def item_style(state: int) -> Style:
    """Its colour."""
    return _ITEM_STYLES.get(state, Style.PLAIN)


def has_failed(rollout: Rollout) -> bool:
    """Whether a host has failed, or went silent."""
    return any(each.state in BAD_ITEMS and each.certificate_count for each in rollout.item_counts)


def went_wrong(rollout: Rollout) -> bool:
    """Whether it didn't get where it should: halted, aborted, or with a host that failed."""
    return has_failed(rollout) or rollout.state in (Rollout.STATE_HALTED, Rollout.STATE_ABORTED)


def needs_operator(rollout: Rollout) -> bool:
    """Whether it goes no further by itself, though it hasn't ended: at its end too, where hosts have failed.

    One that waits for approval, or for hosts that are away, is on its way.
    """
    if rollout.state == Rollout.STATE_FINISHING:
        return has_failed(rollout)
    return rollout.state in (Rollout.STATE_HALTED, Rollout.STATE_PAUSED)


def counts_text(counts: Iterable[Rollout.ItemCount]) -> str:
    """`12 done, 1 failed, 3 held`."""
    numbers = {each.state: each.certificate_count for each in counts if each.certificate_count}
    known = [state for state, _ in _BAR if state in numbers]
    others = [state for state in numbers if state not in known]
    return ", ".join(f"{numbers[state]} {item_word(state)}" for state in (*known, *others))


def bar(counts: Iterable[Rollout.ItemCount], width: int) -> list[tuple[str, Style]]:
    """So many columns, shared among the states as certificates are; what there is one of has a column if there is room.

    A state's share is rounded down, and what is left goes to the largest remainders: the bar of a ring moves forward
    with it, and is whole only when all are in one state.
    """
    numbers = {each.state: each.certificate_count for each in counts if each.certificate_count > 0}
    shown = [(state, mark) for state, mark in _BAR if state in numbers]
    total = sum(numbers[state] for state, _ in shown)
    if not total or width <= 0:
        return [(" " * max(width, 0), Style.PLAIN)]
    exact = {state: numbers[state] * width / total for state, _ in shown}
    room = {state: max(int(share), 1) for state, share in exact.items()}
    while sum(room.values()) > width and max(room.values()) > 1:
        room[max(room, key=lambda state: room[state] - exact[state] if room[state] > 1 else -width)] -= 1
    while sum(room.values()) < width:
        room[max(room, key=lambda state: exact[state] - room[state])] += 1
    spans, left = [], width
    for state, mark in shown:
        take = min(room[state], left)
        left -= take
        spans.append((mark * take, item_style(state)))
    return spans


def action_text(spec: _Spec) -> str:
    """What becomes of each certificate, and of the one that it replaces."""
    match spec.action:
        case _Spec.ACTION_REKEY:
            what = "a new key and certificate"
        case _Spec.ACTION_MOVE:
            what = f"a certificate from {spec.issuer}"
        case _:
            what = "a new certificate"
    if spec.revoke != _Spec.REVOKE_AFTER_SERVED:
        return what
    return f"{what}; the old one revoked once it isn't in use any more"


def halt_text(halt: _Spec.Halt) -> str:
    """When it halts by itself; the broker's defaults where it doesn't say."""
    # One host is the default only where no share is set either.
    count = halt.failed_hosts or (0 if halt.failed_percent else 1)
    bounds = [counted(count, "host")] if count else []
    bounds += [f"{halt.failed_percent} %"] if halt.failed_percent else []
    span = span_of(halt.silent_after) if halt.HasField("silent_after") else None
    silent = "10m" if span is None else span_text(span)
    return f"when {' or '.join(bounds)} of a ring failed; silent for {silent} is failed"


def rings_text(rings: Sequence[rollout_pb2.RingSpec]) -> str:
    """`canary (ring=canary, bakes 1h 0m), 10-percent (10 %), rest`."""
    return ", ".join(map(_ring_text, rings)) or "all at once"


def _ring_text(ring: rollout_pb2.RingSpec) -> str:
    picks = "" if ring.rest else f"{ring.percent} %" if ring.percent else " and ".join(ring.labels)
    span = span_of(ring.bake_duration) if ring.HasField("bake_duration") else None
    said = ", ".join(filter(None, (picks, f"bakes {span_text(span)}" if span else "")))
    return f"{ring.name} ({said})" if said else ring.name
