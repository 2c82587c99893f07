"""The five questions of a night: who is hurt, who is next, one cause or many, what changed before, who is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.ctl.show.fleet import cause_text
from certplane.ctl.show.words import ACTORS, clock_text, ending_one, health_style, health_word, is_critical, off
from certplane.rpc.times import span_of
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import fleet_pb2

Summary = fleet_pb2.SummarizeFleetResponse
_INDENT = "  "
_MOST_CHANGES = 20
"""So many the broker sends, without saying whether there are more."""


def alarms(summary: Summary) -> bool:
    """Whether anybody is hurt, or will be without a person."""
    return bool(summary.hurt_count or summary.next_wont_heal_count) or any(
        is_critical(each.health) and each.certificate_count for each in summary.health_counts
    )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of it. One that isn't folded is cut where the terminal ends."""

    text: str
    style: Style = Style.PLAIN
    folded: bool = False


def head(summary: Summary) -> str:
    """Who there is."""
    services = f", {counted(summary.service_count, 'service')}" if summary.service_count else ""
    if summary.connected_service_count:
        services += f", {summary.connected_service_count} listening"
    return f"{counted(summary.host_count, 'host')}, {summary.connected_host_count} connected{services}"


def summary_lines(summary: Summary, now: datetime) -> Iterator[Line]:
    """All of it but the totals, the most urgent first."""
    yield Line(f"HURT NOW {summary.hurt_count}", Style.BAD if summary.hurt_count else Style.GOOD)
    for each in summary.hurt:
        yield Line(f"{_INDENT}{_certificate(each, now)}", health_style(each.certificate.health))
    yield from _more(summary.hurt_count - len(summary.hurt))
    wont = f", {summary.next_wont_heal_count} won't heal" if summary.next_wont_heal_count else ""
    yield Line(f"NEXT {summary.next_count}{wont}", Style.BAD if summary.next_wont_heal_count else Style.STRONG)
    for each in summary.next:
        yield Line(f"{_INDENT}{_certificate(each, now)}", health_style(each.certificate.health))
    yield from _more(summary.next_count - len(summary.next))
    yield Line(f"CAUSES {summary.cause_count}", Style.WARNING if summary.cause_count else Style.GOOD)
    for cause in summary.causes:
        yield Line(f"{_INDENT}{_cause(cause, now)}", health_style(cause.health), folded=True)
        if cause.reason and cause.reason != cause.cause:
            yield Line(f"{_INDENT * 2}{cause.reason}", folded=True)
        if cause.remedy:
            actor = ACTORS.get(cause.actor, "")
            yield Line(f"{_INDENT * 2}do: {cause.remedy}{f' ({actor})' if actor else ''}", folded=True)
    yield from _more(summary.cause_count - len(summary.causes))
    yield Line(f"CHANGED {len(summary.changes)}", Style.STRONG)
    for change in summary.changes:
        by = f" by {change.identity}" if change.identity else ""
        times = f" ({change.count} times)" if change.count > 1 else ""
        kind = change.event_type.replace("_", " ")
        what = f"{kind}: {change.text}" if change.text else kind
        yield Line(f"{_INDENT}{clock_text(change.event_time)} {what}{by}{times}")
    if len(summary.changes) >= _MOST_CHANGES:
        yield Line(f"{_INDENT}and what was before: `certplanectl audit` has it")
    yield Line(f"MISSING {summary.missing_count}", Style.WARNING if summary.missing_count else Style.GOOD)
    for missing in summary.missing:
        yield Line(f"{_INDENT}{_missing(missing, now)}")
    yield from _more(summary.missing_count - len(summary.missing))
    yield from _rest(summary)


def waiting_text(issuer: fleet_pb2.SummarizeFleetResponse.IssuerState) -> str:
    """How many orders wait for a place within its limits, and how long: `12 orders wait for a place, until ...`."""
    last = "some for more than 90 days"
    if issuer.HasField("waiting_until_time"):
        last = f"the last until {clock_text(issuer.waiting_until_time)}"
    return f"{counted(issuer.waiting_order_count, 'order')} waiting for a place within its limits, {last}"


def _rest(summary: Summary) -> Iterator[Line]:
    """What is no trouble of a certificate: issuers, orders, ends to come, versions."""
    for issuer in summary.issuers:
        if not issuer.usable:
            until = f", until {clock_text(issuer.until_time)}" if issuer.HasField("until_time") else ""
            why = issuer.reason or "no reason given"
            yield Line(f"ISSUER {issuer.issuer} takes no orders: {why}{until}", Style.BAD, folded=True)
        if issuer.waiting_order_count:
            yield Line(f"ISSUER {issuer.issuer}: {waiting_text(issuer)}", Style.WARNING, folded=True)
    troubled = f", {summary.troubled_order_count} in trouble" if summary.troubled_order_count else ""
    style = Style.WARNING if summary.troubled_order_count else Style.PLAIN
    yield Line(f"ORDERS {summary.open_order_count} open{troubled}", style)
    if summary.endings:
        ends = (f"{each.certificate_count} in {_days(each)}" for each in summary.endings if each.HasField("within"))
        yield Line(f"ENDING {', '.join(ends)}")
    if summary.agent_versions:
        versions = (f"{each.version or 'never came'} {each.host_count}" for each in summary.agent_versions)
        yield Line(f"AGENTS {', '.join(versions)}")


def _certificate(each: fleet_pb2.FleetCertificate, now: datetime) -> str:
    status = each.certificate
    end = ending_one(status)
    ends = "" if end is None else f"  {_ends(end.not_after_time, now)}"
    tries = f"  next try {off(status.next_attempt_time, now)}" if status.HasField("next_attempt_time") else ""
    name = f"{each.label or each.host}/{status.name}"
    return f"{name}  {health_word(status.health)}{ends}{tries}  {cause_text(status)}".rstrip()


def _ends(timestamp: Timestamp, now: datetime) -> str:
    text = off(timestamp, now)
    return f"ended {text}" if text.endswith("ago") else f"ends {text}"


def _cause(cause: Summary.Cause, now: datetime) -> str:
    what = f"{cause.certificate_count} x {health_word(cause.health)} {cause.cause}"
    hosts = ", ".join(cause.hosts)
    more = cause.host_count - len(cause.hosts)
    where = f" at {hosts}{f' and {more} more' if more > 0 else ''}" if hosts else ""
    since = f", since {clock_text(cause.since_time)}" if cause.HasField("since_time") else ""
    again = f", next try {off(cause.next_attempt_time, now)}" if cause.HasField("next_attempt_time") else ""
    return f"{what}{where}{since}{again}"


def _missing(missing: Summary.Missing, now: datetime) -> str:
    never = "" if missing.reason else "never came"  # which is the reason, mostly
    heard = f"last heard {off(missing.last_seen_time, now)}" if missing.HasField("last_seen_time") else never
    ends = f"  {_ends(missing.soonest_not_after_time, now)}" if missing.HasField("soonest_not_after_time") else ""
    return "  ".join(filter(None, (missing.host, heard, ends.strip(), missing.reason)))


def _days(ending: Summary.Ending) -> str:
    within = span_of(ending.within)
    return "?" if within is None else f"{within.days}d" if within.days else span_text(within)


def _more(count: int) -> Iterator[Line]:
    if count > 0:
        yield Line(f"{_INDENT}and {count} more")
