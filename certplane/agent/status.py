"""What `certplane-agent status` shows: read from this host's disk, so that it works while the agent runs, and without.

`StatusReport` is the value, the same for people (`to_text`) and for programs (`status_json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from certplane.agent.link.state import LinkPhase, LinkState
from certplane.agent.renewal.due import LineageSpec, aborted_rollout, due_time, shown_reason, waiting_text, warn_time
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.health import lineage_health
from certplane.agent.renewal.plan import newest_version
from certplane.agent.renewal.skew import MOST_SKEW
from certplane.agent.renewal.status import new_status
from certplane.agent.renewal.waiting import hold_of
from certplane.fleet_report.model import CertificateState
from certplane.runtime.columns import Column, column_lines
from certplane.runtime.health import HealthWord, Severity
from certplane.runtime.tables import moment_text, span_text
from certplane.runtime.terminal import Style, Terminal
from certplane.runtime.text import counted, printable

UNREADABLE = "unreadable"
"""The state of a lineage whose files can't be read."""
_MOST_TEXT = 8000
_WHY = 40
"""Characters of a reason in a table."""
_WEIGHTS: Final = ((0, 12), (0, None), (1, None), (2, None), (4, 10), (5, None), (3, 12))
"""Of the columns of the table, in their order: how soon each is left out, and to what it may be cut."""
_NOWHERE: Final = Terminal()
_Row = tuple[str, str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class LineageReport:
    """One lineage as it is now.

    `version` and what follows up to `renew_time` are those of the version in force; None and empty without one.
    `newest_version` is another one when an activation failed, or waits (until `activate_after`) for its window or for a
    rollout (`held_by_rollout_id`, or `aborted_rollout_id`). `expired` and `overdue` say what a date alone doesn't.
    `renew_reason` is why it is renewed now, or else why then. `served_...` is what the service presented at
    `verify_time`, and `served_version` which version that is; all are empty and None without a `verify`. `last_error`
    is of the step `failed_step`, `verify_error` of the last look at the service. `health` is the worst of what is wrong
    as a word (`renewal.health`), `health_text` what that is here.
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
    failed_step: str
    activate_after: datetime | None
    served_serial_number: str
    served_version: int | None
    served_not_after: datetime | None
    verify_time: datetime | None
    verify_error: str
    verify_failures: int
    next_verify_time: datetime | None
    health: str = HealthWord.OK.value
    severity: str = Severity.OK.value
    health_text: str = ""
    remedy: str = ""
    held_by_rollout_id: str = ""
    aborted_rollout_id: str = ""


@dataclass(frozen=True, slots=True)
class LinkReport:
    """The way to the broker.

    `phase` is a `link.state.LinkPhase` by value, `idle` when no agent runs. `clock_skew_seconds` is this host's clock
    less the broker's; None before it was measured. `unacknowledged_reports` wait on disk until the broker has them.
    `broker_url` is the broker that has the stream, or had it last.
    """

    phase: str
    since: datetime | None
    last_error: str
    next_attempt_time: datetime | None
    unacknowledged_reports: int
    last_connected_time: datetime | None
    broker_version: str
    clock_skew_seconds: float | None
    broker_url: str = ""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The host. `running` says what answered for the agent; empty when none runs."""

    identity_name: str
    running: str
    identity: LineageReport
    certificates: tuple[LineageReport, ...]
    broker: LinkReport

    @property
    def alarms(self) -> bool:
        """Whether anybody is hurt by the state of a certificate, or will be without a person."""
        return any(each.severity == Severity.CRITICAL for each in (self.identity, *self.certificates))


def lineage_report(spec: LineageSpec, facts: LineageFacts, now: datetime, *, identity: bool = False) -> LineageReport:
    """What is on disk, as a person wants to know it."""
    current, status = facts.current, facts.status
    newest = newest_version(facts.versions)
    health = lineage_health(spec, facts, now, identity=identity)
    attempts = []
    hold = hold_of(spec.asked, status, None if newest is None else newest.directed, now, forced=False)
    if status.failures and hold is not None:  # without one it is tried as soon as an agent runs with this agent.yml
        attempts.append(hold.until)
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
        renew_reason=shown_reason(spec, status, newest if status.renew_reason else current),
        failures=status.failures,
        activation_failures=status.activation_failures,
        next_attempt_time=max(attempts) if attempts else None,
        last_error=status.last_error,
        update_time=status.update_time,
        failed_step="" if status.failed_step is None else status.failed_step.value,
        activate_after=status.activate_after,
        served_serial_number=status.served_serial_number,
        served_version=status.verified_version,
        served_not_after=status.served_not_after,
        verify_time=status.verify_time,
        verify_error=status.verify_error,
        verify_failures=status.verify_failures,
        next_verify_time=status.next_verify_time,
        health=health.word.value,
        severity=health.severity.value,
        health_text=health.text,
        remedy=health.remedy,
        held_by_rollout_id=status.held_by_rollout_id,
        aborted_rollout_id=aborted_rollout(newest),
    )


def unreadable_report(spec: LineageSpec, error: str, now: datetime) -> LineageReport:
    """A lineage whose state can't be read: nothing is known of it but that."""
    nothing = LineageFacts((), None, None, replace(new_status(spec.name, now), last_error=error))
    return replace(
        lineage_report(spec, nothing, now),
        state=UNREADABLE,
        health=HealthWord.WONT_HEAL.value,
        severity=Severity.CRITICAL.value,
        health_text=f"its state can't be read: {error}",
        remedy="",
    )


def link_report(state: LinkState, *, running: bool, unacknowledged: int) -> LinkReport:
    """The link as it is; an agent that doesn't run has none, whatever was last written of it."""
    return LinkReport(
        phase=(state.phase if running else LinkPhase.IDLE).value,
        since=state.since if running else None,
        last_error=state.last_error,
        next_attempt_time=state.next_attempt_time if running else None,
        unacknowledged_reports=unacknowledged,
        last_connected_time=state.last_connected_time,
        broker_version=state.broker_version,
        clock_skew_seconds=None if state.clock_skew is None else state.clock_skew.total_seconds(),
        broker_url=state.broker_url,
    )


def _state(facts: LineageFacts) -> str:
    """The status's state, but for a version that an enrollment has just put in force: no agent has seen it yet."""
    if facts.status.state is CertificateState.ABSENT and facts.current is not None:
        return CertificateState.WAITING.value
    return facts.status.state.value


def to_text(report: StatusReport, now: datetime, terminal: Terminal = _NOWHERE) -> str:
    """The report for people: a table that fits the terminal, and below it a line for each error and whatever waits."""
    rows: list[_Row] = [("", "STATE", "VALID UNTIL", "RENEWAL", "WHY", "SERVED", "NAMES")]
    identity = report.identity
    rows.append(("identity", *_columns(identity, now), report.identity_name))
    rows += [(each.name, *_columns(each, now), " ".join(each.dns_names)) for each in report.certificates]
    lines = [f"agent: {f'running ({report.running})' if report.running else 'not running'}"]
    lines += [*_link_lines(report, now), ""]
    notes = [f"{each.name}: {note}" for each in (identity, *report.certificates) for note in _notes(each, now)]
    table = _table_lines(rows, terminal)
    begin, end = ([printable(line, _MOST_TEXT) for line in part] for part in (lines, ["", *notes] if notes else []))
    return "\n".join([*begin, *table, *end])


def _table_lines(rows: Sequence[_Row], terminal: Terminal) -> list[str]:
    """As wide as the terminal, where that has an end; else with all columns."""
    header, *shown = rows

    def column(number: int, weight: int, least: int | None) -> Column[_Row]:
        style = _state_style if number == 1 else None
        return Column(header[number], lambda row: row[number], weight, least, style)

    columns = [column(number, weight, least) for number, (weight, least) in enumerate(_WEIGHTS)]
    return column_lines(columns, shown, terminal, wide=terminal.width is None)


def _state_style(row: _Row) -> Style:
    """A state that is shown as a health is critical (`_state_shown`)."""
    return Style.BAD if row[1] in set(HealthWord) else Style.PLAIN


def _link_lines(report: StatusReport, now: datetime) -> list[str]:
    """How the broker is reached, while an agent runs that knows; and a clock that is wrong, in any case."""
    lines, link = [], report.broker
    if report.running and link.since is not None:
        error = f": {link.last_error}" if link.last_error else ""
        then = "" if link.next_attempt_time is None else f" (next try {_moment(link.next_attempt_time, now)})"
        to = f" to {link.broker_url}" if link.phase == LinkPhase.CONNECTED and link.broker_url else ""
        lines.append(f"broker: {link.phase}{to} since {_moment(link.since, now)}{error}{then}")
    if link.unacknowledged_reports:
        lines.append(f"reports: {counted(link.unacknowledged_reports, 'waits', 'wait')} for the broker")
    skew = timedelta(seconds=link.clock_skew_seconds or 0)
    if abs(skew) > MOST_SKEW:
        side = "ahead of" if skew > timedelta() else "behind"
        lines.append(f"clock: {span_text(abs(skew))} {side} the broker's; set the clocks by NTP")
    return lines


def _columns(lineage: LineageReport, now: datetime) -> tuple[str, str, str, str, str]:
    if lineage.not_after is None:
        return _state_shown(lineage), "-", "-", lineage.renew_reason or "-", "-"
    state = _state_shown(lineage)
    served = lineage.served_serial_number or ("-" if lineage.verify_time is None else "nothing")
    why = lineage.renew_reason
    why = why if len(why) <= _WHY else f"{why[: _WHY - 3]}..."  # a directive's reason may be long; JSON has it whole
    return state, _moment(lineage.not_after, now), _moment(lineage.renew_time, now), why, served


def _state_shown(lineage: LineageReport) -> str:
    """What hurts, or will, is said first; else where it is."""
    return lineage.health if lineage.severity == Severity.CRITICAL else lineage.state


def _notes(lineage: LineageReport, now: datetime) -> list[str]:
    notes = []
    if lineage.severity == Severity.CRITICAL or lineage.health in {HealthWord.STALE_SERVED, HealthWord.MISMATCHED}:
        remedy = f"; {lineage.remedy}" if lineage.remedy else ""
        notes.append(f"{lineage.health}: {lineage.health_text}{remedy}")
    if lineage.last_error:
        after = "" if lineage.next_attempt_time is None else f" (next try {_moment(lineage.next_attempt_time, now)})"
        notes.append(f"{lineage.last_error}{_times(lineage.failures or lineage.activation_failures)}{after}")
    if lineage.verify_error:
        after = "" if lineage.next_verify_time is None else f" (next check {_moment(lineage.next_verify_time, now)})"
        notes.append(f"{lineage.verify_error}{_times(lineage.verify_failures)}{after}")
    if lineage.state == CertificateState.DUE and len(lineage.renew_reason) > _WHY:
        notes.append(lineage.renew_reason)
    if lineage.activate_after is not None:
        when = _moment(lineage.activate_after, now)
        rollouts = lineage.held_by_rollout_id, lineage.aborted_rollout_id
        notes.append(waiting_text(lineage.newest_version, *rollouts, when))
    return notes


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def _moment(time: datetime | None, now: datetime) -> str:
    return "-" if time is None else moment_text(time, now)
