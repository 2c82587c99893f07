"""The list of hosts: a line each, with its worst certificate. What doesn't fit is left out, the least important first.

Nothing is folded: what is cut ends with `>`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from certplane.ctl.watch.fleet import CertificateRow, HostRow
from certplane.ctl.watch.page import Line, Lines, Page, PageKind, padded
from certplane.runtime.health import HealthWord
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style


@dataclass(frozen=True, slots=True)
class _Row:
    """What a line is about: a host, and the certificate that is shown of it."""

    host: HostRow
    certificate: CertificateRow | None
    now: datetime

    @property
    def health(self) -> str:
        """Of the certificate; of the host, which may be silent too, where that is its worst one."""
        one = self.certificate
        return self.host.health if one is None or one is self.host.worst else one.health

    @property
    def rank(self) -> int:
        """Of that health."""
        one = self.certificate
        return self.host.rank if one is None or one is self.host.worst else one.rank


@dataclass(frozen=True, slots=True)
class _Column:
    """`weight` 0 is never left out; of the others the highest goes first. Widths in columns of the screen."""

    title: str
    cell: Callable[[_Row], str]
    least: int
    most: int
    weight: int


def style_of(rank: int) -> Style:
    """The colour that goes with a health's word."""
    if rank <= HealthWord.OVERDUE.rank:
        return Style.BAD
    return Style.GOOD if rank >= HealthWord.OK.rank else Style.WARNING


def until(moment: datetime | None, now: datetime) -> str:
    """How far off a moment is, or how long ago it was, which is told less exactly: `3d 4h`, `13h ago`."""
    if moment is None:
        return "-"
    span = moment - now
    return span_text(span) if span.total_seconds() > 0 else f"{span_text(-span).partition(' ')[0]} ago"


def ending(moment: datetime, now: datetime) -> str:
    """The same of an end, in words: `ends in 3d 4h`, `ended 13h ago`."""
    return f"ends in {until(moment, now)}" if moment > now else f"ended {until(moment, now)}"


def link(host: HostRow, now: datetime) -> str:
    """Whether a host is there, and since when."""
    if not host.connected and host.since is None:
        return "never seen"
    word = "up" if host.connected else "down"
    return f"{'CONTESTED ' if host.contested else ''}{word}" + (f" {span_text(now - host.since)}" if host.since else "")


def _certificate(row: _Row) -> str:
    if row.certificate is None:
        return "-"
    more = len(row.host.certificates) - 1
    return f"{row.certificate.name} +{more}" if more else row.certificate.name


def _cause(row: _Row) -> str:
    certificate = row.certificate
    if certificate is not None and certificate.rank < HealthWord.OK.rank:
        return certificate.cause or certificate.reason or certificate.state
    return row.host.blocked or ("" if row.host.connected else "not connected")


def _time(pick: Callable[[CertificateRow], datetime | None]) -> Callable[[_Row], str]:
    return lambda row: "-" if row.certificate is None else until(pick(row.certificate), row.now)


_COLUMNS: Final = (
    _Column("HEALTH", lambda row: row.health, 7, 14, 0),
    _Column("HOST", lambda row: row.host.shown, 16, 30, 0),
    _Column("CERT", _certificate, 8, 24, 3),
    _Column("ENDS IN", _time(lambda certificate: certificate.not_after), 9, 11, 1),
    _Column("NEXT TRY", _time(lambda certificate: certificate.next_attempt), 8, 11, 5),
    _Column("RENEWS", _time(lambda certificate: certificate.renew_time), 8, 11, 7),
    _Column("LINK", lambda row: link(row.host, row.now), 8, 16, 6),
    _Column("STATE", lambda row: row.certificate.state if row.certificate else "-", 9, 20, 8),
    _Column("VERSION", lambda row: row.host.version or "-", 7, 12, 9),
    _Column("BROKER", lambda row: row.host.broker or "-", 7, 16, 10),
    _Column("CAUSE", _cause, 20, 60, 2),
)
"""In the order of the screen."""


def fitting(width: int) -> list[tuple[_Column, int]]:
    """Which columns fit, and how wide each is; what room is left the most important ones have first.

    On the narrowest screen the host's name is cut.
    """
    kept = list(_COLUMNS)
    while len(kept) > 1 and sum(each.least for each in kept) + len(kept) - 1 > width:
        drop = max(kept, key=lambda each: each.weight)
        if not drop.weight:
            break
        kept.remove(drop)
    spare = width - sum(each.least for each in kept) - len(kept) + 1
    widths = {each.title: each.least for each in kept}
    for each in sorted(kept, key=lambda each: each.weight):
        more = min(spare, each.most - each.least)
        if more > 0:
            widths[each.title] += more
            spare -= more
    if spare < 0:  # not even what is never left out fits: the health is whole
        widths[kept[-1].title] = max(widths[kept[-1].title] + spare, 1)
    return [(each, widths[each.title]) for each in kept]


def host_lines(
    hosts: Sequence[HostRow],
    now: Callable[[], datetime],
    width: int,
    picked: Callable[[CertificateRow], bool] = lambda _: True,
) -> Lines:
    """A line for each host with the worst of its certificates that are `picked`, and the titles above them."""
    columns = fitting(width)

    def line(number: int) -> Line:
        host = hosts[number]
        row = _Row(host, next(filter(picked, host.certificates), None), now())
        spans = []
        for index, (column, room) in enumerate(columns):
            text = padded(column.cell(row), room) + (" " if index < len(columns) - 1 else "")
            spans.append((text, style_of(row.rank) if index == 0 else Style.PLAIN))
        return Line(tuple(spans), Page(PageKind.HOST, host.name), host.name)

    titles = " ".join(padded(column.title, room) for column, room in columns)
    return Lines([host.name for host in hosts], line, Line(((titles, Style.STRONG),)))


def clock(moment: datetime | None) -> str:
    """A time of the day, in UTC."""
    return "-" if moment is None else f"{moment.astimezone(UTC):%H:%M:%S}Z"
