"""Rollouts as facts, rows and lines: what one would be, how far it is, what has changed, what an operator can do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.ctl.show.rollout_words import (
    ENDED,
    STATES,
    Item,
    Rollout,
    action_text,
    bar,
    counts_text,
    halt_text,
    has_failed,
    item_style,
    item_word,
    ring_style,
    ring_word,
    state_style,
    state_text,
)
from certplane.ctl.show.selections import selection_text
from certplane.ctl.show.words import clock_text, health_word, moment, off
from certplane.rpc.times import span_of, time_of
from certplane.runtime.columns import Column
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import budget_pb2, rollout_pb2

_Spec = rollout_pb2.RolloutSpec
_Ring = Rollout.Ring

_COLUMNS: Final = 24
"""Of a bar in a table."""


def forecast_text(forecast: budget_pb2.Forecast, now: datetime) -> str:
    """When the last certificate has its place at its CA, and what decides that."""
    parts = []
    if forecast.HasField("last_order_time"):
        parts.append(f"the last certificate ordered by {moment(forecast.last_order_time, now)}")
    if forecast.bound_by:
        parts.append(f"bound by {forecast.bound_by}")
    if forecast.exempt_count:
        parts.append(f"{forecast.exempt_count} of {forecast.order_count} count for no limit")
    if forecast.never_count:
        parts.append(f"{forecast.never_count} GET NO PLACE within 90 days")
    return "; ".join(parts)


def late_by(rollout: Rollout) -> str:
    """By how much it ends after its deadline, as far as can be told; empty if it doesn't."""
    if not (rollout.spec.HasField("deadline") and rollout.HasField("expected_end_time")):
        return ""
    deadline, end = time_of(rollout.spec.deadline), time_of(rollout.expected_end_time)
    return span_text(end - deadline) if deadline is not None and end is not None and end > deadline else ""


def facts(rollout: Rollout, now: datetime) -> list[tuple[str, str]]:
    """All of it but rings and hosts."""
    spec, late = rollout.spec, late_by(rollout)
    revoked = f"{counted(rollout.revoked_count, 'certificate')}, {rollout.unrevoked_count} to be revoked"
    revoking = spec.revoke == _Spec.REVOKE_AFTER_SERVED or rollout.revoked_count
    whole = counted(sum(each.certificate_count for each in rollout.item_counts), "certificate")
    deadline = moment(spec.deadline, now) if spec.HasField("deadline") else ""
    return [
        ("rollout", rollout.rollout_id),
        ("state", state_text(rollout)),
        ("  since", _time(rollout, "update_time", now)),
        ("of", f"{whole} of {counted(rollout.host_count, 'host')}: {selection_text(spec.selection)}"),
        ("what", action_text(spec)),
        ("reason", spec.reason),
        ("progress", counts_text(rollout.item_counts)),
        ("forecast", forecast_text(rollout.forecast, now) if rollout.state not in ENDED else ""),
        ("ends", _time(rollout, "end_time", now) or _expected(rollout, now)),
        ("deadline", f"{deadline}; LATE by {late}" if late else deadline),
        ("revoked", revoked if revoking else ""),
        ("halts", halt_text(spec.halt)),
        ("at a time", f"{spec.max_percent_of_name} % of a name's hosts" if spec.max_percent_of_name else ""),
        ("incident", rollout.incident_id),
        ("created", f"{clock_text(rollout.create_time)} by {rollout.created_by}"),
        ("approved", f"by {rollout.approved_by}" if rollout.approved_by else ""),
        ("started", _time(rollout, "start_time", now)),
    ]  # fmt: skip


def ring_columns(now: datetime) -> list[Column[_Ring]]:
    """A rollout's rings."""
    return [
        Column("RING", lambda ring: ring.name, 0, least=10),
        Column("STATE", ring_word, 0, style=ring_style),
        Column("", lambda ring: "".join(text for text, _ in bar(ring.item_counts, _COLUMNS)), 4),
        Column("HOSTS", lambda ring: str(ring.host_count), 3),
        Column("CERTIFICATES", lambda ring: counts_text(ring.item_counts), 1, least=12),
        Column("BAKES", lambda ring: baking(ring, now), 2),
        Column("RELEASED", lambda ring: off(ring.release_time, now) if ring.HasField("release_time") else "", 5),
        Column("DONE", lambda ring: off(ring.done_time, now) if ring.HasField("done_time") else "", 6),
    ]


def baking(ring: _Ring, now: datetime) -> str:
    """How long it bakes still, and what the deadline cut off."""
    until = time_of(ring.bake_until_time) if ring.state == _Ring.STATE_BAKING else None
    cut = span_of(ring.bake_cut) if ring.HasField("bake_cut") else None
    said = (f"{span_text(until - now)} left" if until is not None else "", f"cut by {span_text(cut)}" if cut else "")
    return ", ".join(filter(None, said))


def item_columns(now: datetime) -> list[Column[Item]]:
    """Certificates of a rollout."""
    return [
        Column("HOST", lambda each: each.host, 0, least=16),
        Column("CERTIFICATE", lambda each: each.certificate_name or each.certificate_id, 3, least=8),
        Column("RING", lambda each: each.ring, 4, least=6),
        Column("STATE", lambda each: item_word(each.state), 0, style=lambda each: item_style(each.state)),
        Column("REASON", lambda each: each.reason, 1, least=16),
        Column("HEALTH", lambda each: health_word(each.health) if each.health else "", 5),
        Column("RELEASED", lambda each: _off(each, "release_time", now), 6),
        Column("DONE", lambda each: _off(each, "done_time", now), 7),
        Column("REVOKED", lambda each: _off(each, "revoke_time", now), 8),
        Column("ID", lambda each: each.certificate_id, None),
        Column("NEW ID", lambda each: each.new_certificate_id, None),
    ]


def columns(now: datetime) -> list[Column[Rollout]]:
    """A list of rollouts."""
    return [
        Column("ROLLOUT", lambda each: each.rollout_id, 0),
        Column("STATE", lambda each: STATES.get(each.state, f"state {each.state}"), 0, style=state_style),
        Column("HOSTS", lambda each: str(each.host_count), 3),
        Column("CERTIFICATES", lambda each: counts_text(each.item_counts), 1, least=12),
        Column("ENDS", lambda each: end_off(each, now), 4),
        Column("REASON", lambda each: each.spec.reason, 2, least=12),
        Column("WHAT", lambda each: action_text(each.spec), 7, least=12),
        Column("BY", lambda each: each.created_by, 6, least=10),
        Column("CREATED", lambda each: off(each.create_time, now), 5),
        Column("INCIDENT", lambda each: each.incident_id, None),
    ]


def end_off(rollout: Rollout, now: datetime) -> str:
    """How far off its end is, or is expected to be; empty if that isn't known."""
    if rollout.HasField("end_time"):
        return off(rollout.end_time, now)
    return off(rollout.expected_end_time, now) if _is_expected(rollout, now) else ""


def remedies(rollout: Rollout, command: str) -> list[str]:
    """What an operator can do now; `command` is how certplanectl's own are typed, up to its words."""
    name = rollout.rollout_id
    match rollout.state:
        case Rollout.STATE_AWAITING_APPROVAL:
            return [f"another operator lets it begin: {command} approve {name} --reason TEXT"]
        case Rollout.STATE_HALTED | Rollout.STATE_PAUSED:
            return [
                f"go on, and try again what failed: {command} resume {name} --reason TEXT",
                f"or leave each host with what works: {command} abort {name} --reason TEXT",
            ]
        case Rollout.STATE_FINISHING if has_failed(rollout):
            return [
                f"try again what failed: {command} resume {name} --reason TEXT",
                f"or end it without: {command} finish {name} --reason TEXT",
                *_revoking(rollout, command),
            ]
        case Rollout.STATE_FINISHING:
            lines = [f"it waits for what is away; to end it without: {command} finish {name} --reason TEXT"]
            return [*lines, *_revoking(rollout, command)]
        case _:
            return []


def _revoking(rollout: Rollout, command: str) -> list[str]:
    """How what is left is revoked, where something is."""
    if not rollout.unrevoked_count:
        return []
    left = counted(rollout.unrevoked_count, "certificate")
    how = f"{command} finish {rollout.rollout_id} --revoke-remaining --reason TEXT"
    return [f"or end it and revoke {left} that may still be served: {how}"]


def change_lines(before: Rollout | None, now: Rollout, at: datetime) -> Iterator[tuple[str, Style]]:
    """What has changed since, a line each with its colour: the state, rings, hosts that failed, and the counts."""
    rings = {ring.name: ring for ring in before.rings} if before is not None else {}
    if before is None or (before.state, before.state_reason) != (now.state, now.state_reason):
        yield f"{now.rollout_id} {state_text(now)}", state_style(now)
    for ring in now.rings:
        was = rings.get(ring.name)
        if was is None or was.state != ring.state:
            bakes = f", {left}" if (left := baking(ring, at)) else ""
            yield f"ring {ring.name}: {ring_word(ring)}{bakes}", ring_style(ring)
    known = {_identity(each) for each in before.failed} if before is not None else set()
    for each in reversed(now.failed):
        if _identity(each) not in known:
            yield item_line(each), item_style(each.state)
    if before is None or counts_text(before.item_counts) != counts_text(now.item_counts):
        end = end_off(now, at)
        yield f"{counts_text(now.item_counts)}{f'; ends {end}' if end and now.state not in ENDED else ''}", Style.STRONG


def item_line(each: Item) -> str:
    """A certificate of it, in a line."""
    what = f"{each.host}: {each.certificate_name or each.certificate_id}: {item_word(each.state)}"
    return f"{what}: {each.reason}" if each.reason else what


def plan_columns() -> list[Column[rollout_pb2.PlanRolloutResponse.PlannedRing]]:
    """Rings as they would be."""
    return [
        Column("RING", lambda ring: ring.name, 0, least=10),
        Column("HOSTS", lambda ring: str(ring.host_count), 0),
        Column("CERTIFICATES", lambda ring: str(ring.certificate_count), 2),
        Column("BAKES", _bakes, 1),
        Column("SOME OF THEM", lambda ring: " ".join(ring.hosts), 3, least=16),
    ]


def plan_line(plan: rollout_pb2.PlanRolloutResponse, spec: _Spec) -> str:
    """What is asked before it begins."""
    what = f"{counted(plan.certificate_count, 'certificate')} of {counted(plan.host_count, 'host')}"
    rings = f" in {counted(len(plan.rings), 'ring')}" if len(plan.rings) > 1 else " at once"
    return f"{what},{rings}: {action_text(spec)}"


def plan_lines(plan: rollout_pb2.PlanRolloutResponse, now: datetime) -> Iterator[tuple[str, Style]]:
    """What an operator should know before, below the rings."""
    forecast = forecast_text(plan.forecast, now)
    if forecast:
        yield f"forecast: {forecast}", Style.BAD if plan.forecast.never_count else Style.PLAIN
    if plan.HasField("expected_end_time"):
        yield f"ends, if all goes well: {moment(plan.expected_end_time, now)}", Style.PLAIN
    if plan.disconnected_host_count:
        yield f"{counted(plan.disconnected_host_count, 'host')} not connected: told when they come", Style.WARNING
    if plan.unable_to_hold_count:
        unable = counted(plan.unable_to_hold_count, "host")
        how = "theirs are ordered when their ring's turn comes"
        yield f"{unable} with an agent that can't hold a certificate back: {how}", Style.WARNING
    for warning in plan.warnings:
        yield f"warning: {warning}", Style.WARNING
    if plan.approval:
        yield f"it would wait: {plan.approval}", Style.WARNING


def _bakes(ring: rollout_pb2.PlanRolloutResponse.PlannedRing) -> str:
    span = span_of(ring.bake_duration) if ring.HasField("bake_duration") else None
    return span_text(span) if span else ""


def _identity(each: Item) -> tuple[str, str, int, str]:
    return each.host, each.certificate_id, each.state, each.reason


def _time(rollout: Rollout, field: str, now: datetime) -> str:
    return moment(getattr(rollout, field), now) if rollout.HasField(field) else ""  # type: ignore[arg-type]  # a field's name


def _off(item: Item, field: str, now: datetime) -> str:
    stamp: Timestamp = getattr(item, field)
    return off(stamp, now) if item.HasField(field) else ""  # type: ignore[arg-type]  # as above


def _expected(rollout: Rollout, now: datetime) -> str:
    return f"{_time(rollout, 'expected_end_time', now)}, if all goes well" if _is_expected(rollout, now) else ""


def _is_expected(rollout: Rollout, now: datetime) -> bool:
    """Whether its end can be told: one that waits for hosts that are away had its time, and ends when they come."""
    expected = time_of(rollout.expected_end_time) if rollout.HasField("expected_end_time") else None
    return expected is not None and expected > now
