"""The lines of the screen, of what was pressed (`screen.Screen`) and of what is known (`known.Known`). Pure.

Terminal, colours and scrolling are `terminal`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from certplane.ctl.watch import detail, rollouts
from certplane.ctl.watch.fleet import CertificateRow, HostRow, listed
from certplane.ctl.watch.known import Known
from certplane.ctl.watch.page import FLEET, Line, Lines, Page, PageKind, Question, Topic, cut, line, wrapped
from certplane.ctl.watch.screen import Screen
from certplane.ctl.watch.summary import Summary, healths_text, strip, summary_lines, summary_of
from certplane.ctl.watch.table import clock, host_lines
from certplane.runtime.health import HealthWord
from certplane.runtime.terminal import Style, text_width
from certplane.runtime.text import counted

_TALL: Final = 16
"""Lines of a screen that has room for the whole summary above the hosts; a lower one shows less of it."""
_LOW: Final = 10
_MANY: Final = 1000
"""Hosts. Of so many the summary of the rows takes a tenth of a second: made anew with time, not at each change."""
_SECONDS: Final = 5
_FIRST_KEYS: Final = "?:keys /:filter s:summary R:rollouts o:order p:pause q:leave"
_OTHER_KEYS: Final = "?:keys Esc:back /:filter a:events r:orders q:leave"


@dataclass(frozen=True, slots=True)
class Place:
    """Which lines of a page are seen: from `first`, counted from 0, so many of all.

    `behind`: How many changes have come since a pause began.
    """

    first: int
    shown: int
    total: int
    behind: int = 0


class Drawing:
    """Makes lines; keeps the sorted hosts and the summary of the rows until they change."""

    def __init__(self) -> None:
        self._hosts: tuple[object, list[HostRow]] = (None, [])
        self._summary: tuple[object, Summary] = (None, Summary())

    def top(self, screen: Screen, known: Known, now: datetime, width: int, height: int) -> list[Line]:
        """Where one is and whether it is the present; above the hosts the summary."""
        state = "PAUSED" if screen.paused else "AWAY" if known.trouble else "live" if known.fleet.complete else "wait"
        style = Style.WARNING if screen.paused else Style.BAD if known.trouble else Style.GOOD
        stamp = f" {state} {clock(known.heard if state in ('AWAY', 'PAUSED') else now)}"
        title = cut(f"certplane {screen.page.title} - {known.where}", max(width - len(stamp), 0))
        gap = " " * max(width - text_width(title) - len(stamp), 0)
        lines = [Line(((title, Style.STRONG), (gap, Style.PLAIN), (cut(stamp, width), style)))]
        if known.trouble:
            again = f"; again at {clock(known.again)}" if known.again else ""
            most = 3 if height >= _TALL else 1
            texts = wrapped(f"{known.trouble}{again}", width)
            if len(texts) > most:
                texts[most - 1 :] = [cut(" ".join(texts[most - 1 :]), width)]
            lines += [line(text, Style.BAD) for text in texts]
        if screen.page == FLEET and known.fleet.complete:
            shown = strip(self.summary(known, now), changes_known=known.summary is not None, now=now, width=width)
            lines += shown if height >= _TALL else shown[: 2 if height >= _LOW else 1]
        return lines

    def body(self, screen: Screen, known: Known, now: Callable[[], datetime], width: int) -> Lines:
        """The lines of the page."""
        page, moment = screen.page, now()
        match page.kind:
            case PageKind.FLEET:
                return host_lines(self.hosts(screen, known), now, width)
            case PageKind.CAUSE:
                head = detail.cause_lines(self.summary(known, moment), page, moment, width)
                hosts = self.hosts(screen, known)
                return host_lines(hosts, now, width, lambda each: _is_of(each, page)).after(head)
            case PageKind.SUMMARY if not known.fleet.complete:
                lines = [line("nothing is known yet: the broker hasn't told of the fleet", Style.WARNING)]
            case PageKind.SUMMARY:
                return _having(screen.view.text, summary_lines(known, self.summary(known, moment), moment, width))
            case _:
                lines = _other(known, page, moment, width)
        return _having(screen.view.text, Lines.of(lines))

    def bottom(self, screen: Screen, known: Known, now: datetime, place: Place, width: int) -> list[Line]:
        """Which lines of how many are seen, by which filter and in which order; and the first keys."""
        seen = f"{place.first + 1}-{place.first + place.shown} of {place.total}"
        facts = [seen if place.total else "nothing matches" if screen.view.text else "none"]
        if screen.paused:
            facts.append(f"paused, {counted(place.behind, 'change')} since: p goes on")
        if screen.view.text:
            facts.append(f"filter: {screen.view.text}")
        if screen.page.kind in {PageKind.FLEET, PageKind.CAUSE}:
            facts.append(f"{screen.order}{', backwards' if screen.backwards else ''}")
            whole = known.fleet.complete
            facts += [_hosts(known), healths_text(self.summary(known, now))] if whole else ["nothing is known yet"]
        keys = line(cut(_FIRST_KEYS if len(screen.views) == 1 else _OTHER_KEYS, width), Style.DIM)
        typed = line(cut(f"/{screen.view.text}_  Enter keeps it, Esc clears it", width), Style.STRONG)
        return [line(cut("  ".join(facts), width), Style.DIM), typed if screen.typing else keys]

    def hosts(self, screen: Screen, known: Known) -> list[HostRow]:
        """The hosts of the page, in their order."""
        page, text = screen.page, screen.view.text
        key = id(known.fleet), known.fleet.version, page, text, screen.order, screen.backwards
        if self._hosts[0] != key:
            rows = list(known.fleet.hosts.values())
            if page.kind is PageKind.CAUSE:
                rows = [host for host in rows if any(_is_of(each, page) for each in host.certificates)]
            self._hosts = key, listed(rows, screen.order, text, backwards=screen.backwards)
        return self._hosts[1]

    def summary(self, known: Known, now: datetime) -> Summary:
        """The broker's summary; of one that has none, what the rows say."""
        if known.summary is not None:
            return known.summary
        hosts = known.fleet.hosts
        key = id(known.fleet), known.fleet.version if len(hosts) < _MANY else 0, int(now.timestamp() // _SECONDS)
        if self._summary[0] != key:
            self._summary = key, summary_of(list(hosts.values()), now)
        return self._summary[1]

    def leaving(self, page: Page, known: Known, now: datetime, width: int, most: int) -> list[str]:
        """The last state, for the terminal that is left: the summary and the worst hosts, or a rollout."""
        if page.kind is PageKind.ROLLOUT:
            return [each.fitted(width).text.rstrip() for each in rollouts.page_lines(known, page, now, width)]
        if not known.fleet.complete:
            return []
        lines = strip(self.summary(known, now), changes_known=known.summary is not None, now=now, width=width)
        ill = [host for host in self.hosts(Screen(), known) if host.rank < HealthWord.OK.rank]
        table = host_lines(ill[:most], lambda: now, width)
        if ill and table.header is not None:
            lines += [table.header, *map(table.line, range(len(table)))]
        if len(ill) > most:
            lines.append(line(f"and {len(ill) - most} more that aren't OK"))
        healths = healths_text(self.summary(known, now)) or "none"
        total = f"{_hosts(known)}; certificates: {healths}; as of {clock(known.heard)}"
        return [each.fitted(width).text.rstrip() for each in lines] + [total]


def _other(known: Known, page: Page, now: datetime, width: int) -> list[Line]:
    """Pages that are neither hosts nor the summary."""
    match page.kind:
        case PageKind.HOST:
            return detail.host_page(known, page, now, width)
        case PageKind.CERTIFICATE:
            return detail.certificate_page(known, page, now, width)
        case PageKind.EVENTS:
            answer = known.answers.get(Question(Topic.EVENTS, page.host, page.profile))
            return detail.event_lines(answer, now, width, of_all=not page.host)
        case PageKind.ORDERS:
            answer = known.answers.get(Question(Topic.ORDERS, page.host, page.profile))
            return detail.order_lines(answer, now, width, of_all=not page.host)
        case PageKind.ROLLOUTS | PageKind.ROLLOUT | PageKind.INCIDENTS:
            return rollouts.page_lines(known, page, now, width)
        case _:
            return detail.help_lines(width)


def _is_of(row: CertificateRow, page: Page) -> bool:
    """Whether a certificate has the cause that a page is about."""
    return (row.health, row.cause) == (page.health, page.cause)


def _having(text: str, lines: Lines) -> Lines:
    """The lines that have all words of a text."""
    words = text.lower().split()
    if not words:
        return lines
    made = [lines.line(number) for number in range(len(lines))]
    return Lines.of(each for each in made if all(word in each.text.lower() for word in words))


def _hosts(known: Known) -> str:
    hosts = known.fleet.hosts
    up = sum(host.connected for host in hosts.values())
    return f"{counted(len(hosts), 'host')}, {up} connected"
