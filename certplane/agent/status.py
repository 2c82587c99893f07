"""What `certplane-agent status` shows: read from this host's disk, so that it works while the agent runs, and without.

`StatusReport` is the value, the same for people and for programs: `to_json` and `to_text` are its two faces. Keys of
the JSON are only ever added.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from certplane.agent.model import LineageState
from certplane.agent.renewal.plan import due_time, newest_version, warn_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certplane.agent.renewal.plan import LineageFacts, LineageSpec

__all__ = ["LineageReport", "StatusReport", "lineage_report", "to_json", "to_text"]


@dataclass(frozen=True, slots=True)
class LineageReport:
    """One lineage as it is now.

    `version` and what follows up to `renew_time` are those of the version in force; None and empty without one.
    `newest_version` is another one when an activation failed. `expired` and `overdue` say what a date alone doesn't.
    """

    name: str
    state: str
    version: int | None
    newest_version: int | None
    dns_names: tuple[str, ...]
    serial_number: str
    not_before: datetime | None
    not_after: datetime | None
    renew_time: datetime | None
    expired: bool
    overdue: bool
    certificate_id: str
    order_id: str
    renew_reason: str
    failures: int
    activation_failures: int
    next_attempt_time: datetime | None
    last_error: str
    update_time: datetime


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The host. `running` says what answered for the agent; empty when none runs."""

    identity_name: str
    running: str
    identity: LineageReport
    certificates: tuple[LineageReport, ...]


def lineage_report(spec: LineageSpec, facts: LineageFacts, now: datetime) -> LineageReport:
    """What is on disk, as a person wants to know it."""
    current, status = facts.current, facts.status
    newest = newest_version(facts.versions)
    attempts = [time for time in (status.next_attempt_time, status.retry_time) if time is not None]
    if status.activation_failures and status.next_activation_time is not None:
        attempts.append(status.next_activation_time)
    return LineageReport(
        name=spec.name,
        state=_state(facts),
        version=None if current is None else current.number,
        newest_version=None if newest is None else newest.number,
        dns_names=spec.dns_names if current is None else current.dns_names,
        serial_number="" if current is None else current.serial_number,
        not_before=None if current is None else current.not_before,
        not_after=None if current is None else current.not_after,
        renew_time=None if current is None else due_time(spec, current),
        expired=current is not None and current.not_after <= now,
        overdue=current is not None and warn_time(spec, current) <= now,
        certificate_id="" if current is None else current.certificate_id,
        order_id="" if facts.pending is None else facts.pending.order_id,
        renew_reason=status.renew_reason,
        failures=status.failures,
        activation_failures=status.activation_failures,
        next_attempt_time=max(attempts) if attempts else None,
        last_error=status.last_error,
        update_time=status.update_time,
    )


def _state(facts: LineageFacts) -> str:
    """The status's state, but for a version that an enrollment has just put in force: no agent has seen it yet."""
    if facts.status.state is LineageState.ABSENT and facts.current is not None:
        return LineageState.WAITING.value
    return facts.status.state.value


def to_json(report: StatusReport) -> str:
    """The report as one JSON object; times are RFC 3339 in UTC."""
    return json.dumps(asdict(report), default=_to_json, indent=2, ensure_ascii=False)


def to_text(report: StatusReport, now: datetime) -> str:
    """The report for a terminal: a table, and below it a line for each error."""
    rows = [("", "STATE", "VALID UNTIL", "RENEWAL", "NAMES")]
    identity = report.identity
    rows.append(("identity", *_columns(identity, now), report.identity_name))
    rows += [(each.name, *_columns(each, now), " ".join(each.dns_names)) for each in report.certificates]
    lines = [f"agent: {f'running ({report.running})' if report.running else 'not running'}", ""]
    lines += _table(rows)
    notes = [f"{each.name}: {note}" for each in (identity, *report.certificates) if (note := _note(each, now))]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _columns(lineage: LineageReport, now: datetime) -> tuple[str, str, str]:
    if lineage.not_after is None:
        return lineage.state, "-", "-"
    state = "EXPIRED" if lineage.expired else "overdue" if lineage.overdue else lineage.state
    return state, _moment(lineage.not_after, now), _moment(lineage.renew_time, now)


def _note(lineage: LineageReport, now: datetime) -> str:
    if not lineage.last_error:
        return ""
    after = "" if lineage.next_attempt_time is None else f" (next try {_moment(lineage.next_attempt_time, now)})"
    count = lineage.failures or lineage.activation_failures
    times = f" ({count} times)" if count > 1 else ""
    return f"{lineage.last_error}{times}{after}"


def _moment(time: datetime | None, now: datetime) -> str:
    if time is None:
        return "-"
    span = time - now
    when = f"in {_span(span)}" if span > timedelta() else f"{_span(-span)} ago"
    return f"{time:%Y-%m-%d %H:%M}Z ({when})"


def _span(span: timedelta) -> str:
    """The two largest units: 3d 4h, 5h 6m, 7m, 8s."""
    seconds = int(span.total_seconds())
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _to_json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    raise TypeError(f"{type(value).__name__} in a report")
