"""Incidents as facts and rows: how many certificates, by when, how far."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from certplane.ctl.show.rollouts import forecast_text
from certplane.ctl.show.words import moment, off
from certplane.runtime.columns import Column
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import incident_pb2

Incident = incident_pb2.Incident
STATES: Final = {number: name.removeprefix("STATE_").lower() for name, number in Incident.State.items() if number}


def state_of(each: Incident) -> str:
    """Where it is."""
    return STATES.get(each.state, f"state {each.state}")


def style_of(each: Incident) -> Style:
    """Its colour: of an open one how bad it is."""
    if each.state == Incident.STATE_CLOSED:
        return Style.GOOD
    return Style.BAD if each.hurt_count or each.late else Style.WARNING


def progress_text(each: Incident) -> str:
    """The worst first: `2 HURT, 1 failing, 12 of 30 replaced, 10 in use`."""
    parts = [f"{each.hurt_count} HURT"] if each.hurt_count else []
    parts += [f"{each.failing_count} failing"] if each.failing_count else []
    return ", ".join(
        [*parts, f"{each.replaced_count} of {each.certificate_count} replaced", f"{each.in_use_count} in use"]
    )


def columns(now: datetime) -> list[Column[Incident]]:
    """A list of incidents."""
    return [
        Column("INCIDENT", lambda each: each.incident_id, 0),
        Column("STATE", state_of, 0, style=style_of),
        Column("ISSUER", lambda each: each.issuer, 3, least=8),
        Column("PROGRESS", progress_text, 1, least=36),
        Column("DEADLINE", lambda each: deadline_off(each, now), 2, style=_deadline_style),
        Column("ROLLOUT", lambda each: each.rollout_id, 4),
        Column("OPENED", lambda each: off(each.open_time, now), 5),
        Column("HOLDERS", lambda each: str(each.holder_count), 6),
    ]


def deadline_off(each: Incident, now: datetime) -> str:
    """How far off it is, and whether that is too soon."""
    if not each.HasField("deadline"):
        return ""
    return f"{off(each.deadline, now)}{', LATE' if each.late else ''}"


def _deadline_style(each: Incident) -> Style:
    return Style.BAD if each.late else Style.PLAIN


def facts(each: Incident, now: datetime) -> list[tuple[str, str]]:
    """All of it."""
    late = "; LATE: the last is ordered after that" if each.late else ""
    held = counted(each.certificate_count, "certificate")
    return [
        ("incident", each.incident_id),
        ("state", state_of(each)),
        ("of", f"{held} of {counted(each.holder_count, 'host or service', 'hosts and services')}, from {each.issuer}"),
        ("deadline", f"{moment(each.deadline, now)}{late}" if each.HasField("deadline") else ""),
        ("progress", progress_text(each)),
        ("forecast", forecast_text(each.forecast, now) if each.state == Incident.STATE_OPEN else ""),
        ("rollout", each.rollout_id),
        ("opened", moment(each.open_time, now)),
        ("closed", moment(each.close_time, now) if each.HasField("close_time") else ""),
        ("the CA says", each.explanation_url),
        ("do", each.remedy),
        ("hosts", ", ".join(each.hosts)),
    ]
