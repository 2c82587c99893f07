"""The five questions of an operator at night: as some lines above the hosts, and as a page with what they open.

Who is hurt now? Who is next, and does it heal by itself? One cause or many? What changed before? Who is missing? The
broker answers them (SummarizeFleet). Of one that is too old to, and of a watch of some hosts, the watch's own rows do,
but for what changed.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.ctl.show.summary import waiting_text
from certplane.ctl.show.words import ACTORS, ending_one, health_style, health_word
from certplane.ctl.watch.fleet import HURT_RANK, CertificateRow, HostRow, counts
from certplane.ctl.watch.known import PERIOD, Known
from certplane.ctl.watch.page import Line, Lines, Page, PageKind, Span, cut, line, wrapped
from certplane.ctl.watch.table import ending, until
from certplane.rpc.times import put_time, time_of
from certplane.runtime.health import HealthWord
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted, printable
from certplane.v1 import fleet_pb2 as pb

_SHOWN: Final = 20
"""Of each list, as the broker does."""
_LABEL: Final = 9

Summary = pb.SummarizeFleetResponse


def summary_of(hosts: Collection[HostRow], now: datetime) -> Summary:
    """What the hosts of a watch say of the five questions; nothing of services, issuers, orders and of what changed."""
    made = Summary(host_count=len(hosts), connected_host_count=sum(host.connected for host in hosts))
    pairs = [(host, each) for host in hosts for each in host.certificates]
    hurt = [(host, each) for host, each in pairs if each.rank <= HURT_RANK]
    ending = [
        (host, each)
        for host, each in pairs
        if each.rank > HURT_RANK and each.not_after is not None and each.not_after <= now + PERIOD
    ]
    hurt.sort(key=lambda pair: (pair[1].rank, pair[0].soonest, pair[0].name))
    ending.sort(key=lambda pair: (pair[1].not_after, pair[0].name))
    for word, number in counts(hosts):
        made.health_counts.add(health=word, certificate_count=number)
    made.hurt_count, made.next_count = len(hurt), len(ending)
    made.next_wont_heal_count = sum(each.rank == HealthWord.WONT_HEAL.rank for _, each in ending)
    made.hurt.extend(_message(*pair) for pair in hurt[:_SHOWN])
    made.next.extend(_message(*pair) for pair in ending[:_SHOWN])
    causes: dict[tuple[int, int, str], list[tuple[HostRow, CertificateRow]]] = {}
    for host, each in pairs:
        if each.rank < HealthWord.OK.rank:
            causes.setdefault((each.rank, each.number, each.cause), []).append((host, each))
    made.cause_count = len(causes)
    for (_, number, cause), group in sorted(causes.items(), key=lambda pair: (pair[0][0], -len(pair[1])))[:_SHOWN]:
        names = sorted({host.name for host, _ in group})
        example = group[0][1]
        told = made.causes.add(
            cause=cause, reason=example.reason, remedy=example.remedy, certificate_count=len(group), hosts=names[:5]
        )
        told.health = number  # type: ignore[assignment]  # an open enum: any number
        told.host_count = len(names)
        _put(min((each.since for _, each in group if each.since), default=None), told.since_time)
        _put(min((each.next_attempt for _, each in group if each.next_attempt), default=None), told.next_attempt_time)
    gone = [host for host in hosts if host.health == HealthWord.UNHEARD or (not host.connected and host.since is None)]
    gone += [host for host in hosts if host.blocked and host not in gone]
    made.missing_count = len(gone)
    for host in sorted(gone, key=lambda each: (each.since is not None, each.since or now, each.name))[:_SHOWN]:
        missing = made.missing.add(host=host.name, reason=host.blocked)
        _put(host.since, missing.last_seen_time)
    return made


def _message(host: HostRow, row: CertificateRow) -> pb.FleetCertificate:
    made = pb.FleetCertificate(host=host.name, label=host.shown)
    made.certificate.name, made.certificate.health_cause = row.name, row.cause
    made.certificate.health_reason, made.certificate.health_remedy = row.reason, row.remedy
    made.certificate.health = row.number
    made.certificate.profile = row.profile
    _put(row.not_after, made.certificate.installed.not_after_time)
    _put(row.next_attempt, made.certificate.next_attempt_time)
    return made


def _put(moment: datetime | None, stamp: Timestamp) -> None:
    if moment is not None:
        put_time(moment, stamp)


def strip(summary: Summary, *, changes_known: bool, now: datetime, width: int) -> list[Line]:
    """A line for each of the five questions."""
    wont = f" ({summary.next_wont_heal_count} won't heal)" if summary.next_wont_heal_count else ""
    bad = Style.BAD if summary.next_wont_heal_count else Style.WARNING
    hours = f"{PERIOD / timedelta(hours=1):.0f}h"
    changes = [_change(each, now) for each in summary.changes] if changes_known else ["the broker doesn't say"]
    rows: list[tuple[str, int | None, str, Style, list[str]]] = [
        ("HURT NOW", summary.hurt_count, "", Style.BAD, [_brief(each, now) for each in summary.hurt]),
        (f"NEXT {hours}", summary.next_count, wont, bad, [_brief(each, now) for each in summary.next]),
        ("CAUSES", summary.cause_count, "", Style.WARNING, [_cause(each) for each in summary.causes]),
        ("CHANGED", None, "", Style.PLAIN, changes or ["nothing"]),
        ("MISSING", summary.missing_count, "", Style.WARNING, [_missing(each, now) for each in summary.missing]),
    ]
    lines = []
    for label, count, more, style, texts in rows:
        colour = style if count else Style.GOOD
        number = "" if count is None else f"{count}{more}"
        text = cut("; ".join(texts), max(width - _LABEL - len(number) - 2, 0))
        spans: list[Span] = [(f"{label:<{_LABEL}}", Style.DIM), (number, colour if count is not None else Style.PLAIN)]
        spans.append((f"{'  ' if number else ''}{text}", Style.PLAIN))
        lines.append(Line(tuple(spans)))
    troubled = [f"{each.issuer}: {each.reason or 'not usable'}" for each in summary.issuers if not each.usable]
    if troubled:
        lines.append(line(cut(f"{'ISSUERS':<{_LABEL}}{printable('; '.join(troubled), 2000)}", width), Style.BAD))
    return lines


def summary_lines(known: Known, summary: Summary, now: datetime, width: int) -> Lines:
    """The page: each question with what answers it, which Enter opens."""
    lines: list[Line] = []

    def section(title: str, count: int, shown: Sequence[Line], none: str) -> None:
        lines.append(line(f"{title}: {count}" if count else title, Style.STRONG, key=title))
        lines.extend(shown or [line(f"  {none}", Style.GOOD)])
        if (more := count - len(shown)) > 0:
            lines.append(line(f"  and {more} more", Style.DIM))

    if known.summary_trouble:
        lines.extend(line(text, Style.WARNING) for text in wrapped(known.summary_trouble, width))
    section("Who is hurt now", summary.hurt_count, [_line_of(each, now, "hurt") for each in summary.hurt], "nobody")
    wont = f", {summary.next_wont_heal_count} of them won't heal by themselves" if summary.next_wont_heal_count else ""
    within = f"Who ends within {span_text(PERIOD)}{wont}"
    section(within, summary.next_count, [_line_of(each, now, "next") for each in summary.next], "nobody")
    causes = [_cause_line(each, now) for each in summary.causes]
    section("By what cause", summary.cause_count, causes, "all is well")
    if known.summary is not None:
        changes = [
            line(f"  {_change(each, now)}", key=f"change {number}") for number, each in enumerate(summary.changes)
        ]
        section("What changed before", 0, changes, "nothing")
    missing = [_missing_line(each, now) for each in summary.missing]
    section("Who is missing", summary.missing_count, missing, "nobody")
    lines.extend(_figures(summary))
    return Lines.of(lines)


def healths_text(summary: Summary) -> str:
    """Certificates by health, the worst first."""
    return ", ".join(f"{each.certificate_count} {health_word(each.health)}" for each in summary.health_counts)


def _figures(summary: Summary) -> Iterable[Line]:
    ends = ", ".join(f"{each.certificate_count} within {each.within.seconds // 86400}d" for each in summary.endings)
    versions = ", ".join(
        f"{printable(each.version, 64) or 'never came'}: {each.host_count}" for each in summary.agent_versions
    )
    orders = f"{summary.open_order_count} open, {summary.troubled_order_count} in trouble"
    issuers = ", ".join(
        f"{printable(each.issuer, 255)} {'usable' if each.usable else printable(each.reason, 500) or 'not usable'}"
        f"{f' ({waiting_text(each)})' if each.waiting_order_count else ''}"
        for each in summary.issuers
    )
    figures = [("certificates", healths_text(summary)), ("ends", ends), ("agents", versions), ("issuers", issuers)]
    if summary.issuers:
        figures.append(("orders", orders))
    shown = [(name, text) for name, text in figures if text]
    if shown:
        yield line("Figures", Style.STRONG, key="figures")
    for name, text in shown:
        opens = Page(PageKind.ORDERS) if name == "orders" else None
        yield Line(((f"  {name:<14}", Style.DIM), (text, Style.PLAIN)), opens, name)


def _ends(found: pb.FleetCertificate) -> datetime | None:
    end = ending_one(found.certificate)
    return None if end is None or not end.HasField("not_after_time") else time_of(end.not_after_time)


def _holder(found: pb.FleetCertificate) -> str:
    return printable(found.label or found.host, 255)


def _brief(found: pb.FleetCertificate, now: datetime) -> str:
    word = health_word(found.certificate.health)
    return " ".join((_holder(found), printable(found.certificate.name, 255), word, until(_ends(found), now)))


def _line_of(found: pb.FleetCertificate, now: datetime, section: str) -> Line:
    status = found.certificate
    name = printable(status.name, 255)
    attempt = time_of(status.next_attempt_time) if status.HasField("next_attempt_time") else None
    tried = f", next try {until(attempt, now)}" if attempt else ""
    why, ends = printable(status.health_cause or status.health_reason, 500), _ends(found)
    spans = (
        (f"  {health_word(status.health):<14} ", health_style(status.health)),
        (f"{_holder(found)} {name}{f' {ending(ends, now)}' if ends else ''}{tried}", Style.PLAIN),
        (f"  {why}", Style.DIM),
    )
    page = Page(PageKind.CERTIFICATE, found.host, name, profile=status.profile)
    return Line(spans, page, f"{section} {found.host} {name}")


def _cause(cause: Summary.Cause) -> str:
    return f"{cause.certificate_count} x {health_word(cause.health)} {_named(cause)}"


def _named(cause: Summary.Cause) -> str:
    return printable(cause.cause or cause.reason, 200)


def _cause_line(cause: Summary.Cause, now: datetime) -> Line:
    since = f", since {_when(time_of(cause.since_time), now)}" if cause.HasField("since_time") else ""
    hosts = counted(cause.host_count, "host")
    word = health_word(cause.health)
    spans = (
        (f"  {cause.certificate_count:>5} x {word:<14} ", health_style(cause.health)),
        (_named(cause), Style.PLAIN),
        (f"  {hosts}{since}", Style.DIM),
    )
    page = Page(PageKind.CAUSE, health=word, cause=printable(cause.cause, 500))
    return Line(spans, page, f"cause {word} {cause.cause}")


def cause_facts(cause: Summary.Cause, now: datetime) -> list[tuple[str, str]]:
    """What is known of a cause, above its hosts."""
    actor = ACTORS.get(cause.actor, "")
    more = cause.host_count - len(cause.hosts)  # services too, which are not among the hosts below
    since = _when(time_of(cause.since_time), now) if cause.HasField("since_time") else ""
    attempt = until(time_of(cause.next_attempt_time), now) if cause.HasField("next_attempt_time") else ""
    return [
        ("cause", printable(cause.cause, 500)),
        ("reason", printable(cause.reason, 2000)),
        ("remedy", " ".join(filter(None, (printable(cause.remedy, 2000), f"({actor})" if actor else "")))),
        ("since", since),
        ("next try", attempt),
        ("at", f"{', '.join(printable(each, 255) for each in cause.hosts)}{f' and {more} more' if more > 0 else ''}"),
    ]


def _change(change: Summary.Change, now: datetime) -> str:
    times = f" ({change.count} times)" if change.count > 1 else ""
    who = f" {printable(change.identity, 255)}" if change.identity else ""
    what = printable(change.text, 500)
    text = f": {what}" if what else ""
    return f"{_when(time_of(change.event_time), now)} {printable(change.event_type, 64)}{who}{text}{times}"


def _missing(missing: Summary.Missing, now: datetime) -> str:
    seen = until(time_of(missing.last_seen_time), now) if missing.HasField("last_seen_time") else "never came"
    return f"{printable(missing.host, 255)} {seen}"


def _missing_line(missing: Summary.Missing, now: datetime) -> Line:
    ends = time_of(missing.soonest_not_after_time) if missing.HasField("soonest_not_after_time") else None
    left = f", {ending(ends, now)}" if ends else ""
    reason = f"  {printable(missing.reason, 500)}" if missing.reason and missing.HasField("last_seen_time") else ""
    spans = ((f"  {_missing(missing, now)}{left}", Style.PLAIN), (reason, Style.DIM))
    return Line(spans, Page(PageKind.HOST, missing.host), f"missing {missing.host}")


def _when(moment: datetime | None, now: datetime) -> str:
    """A time of today, or of another day with it."""
    if moment is None:
        return "-"
    return f"{moment:%H:%M}Z" if moment.date() == now.date() else f"{moment:%m-%d %H:%M}Z"
