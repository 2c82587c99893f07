"""What the full screen is made of: pages that open each other, lines of words in colours, what a page asks for.

A page is a value; what it shows is computed from it and from what is known (`known.Known`) whenever it is drawn.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from certplane.runtime.terminal import Style, Terminal, text_width
from certplane.runtime.text import printable

_CUTTER: Final = Terminal(ellipsis=">")
"""What is cut ends so, as in less(1): one column, in any encoding."""


class PageKind(StrEnum):
    """What a page shows; the values are titles."""

    FLEET = "fleet"
    SUMMARY = "summary"
    CAUSE = "cause"
    HOST = "host"
    CERTIFICATE = "certificate"
    EVENTS = "audit events"
    ORDERS = "orders"
    ROLLOUTS = "rollouts"
    ROLLOUT = "rollout"
    INCIDENTS = "incidents"
    HELP = "keys"


@dataclass(frozen=True, slots=True)
class Page:
    """One page, by what it is about: a host, a certificate of it by name and profile, a cause by health and words.

    Or a rollout, by its id.
    """

    kind: PageKind
    host: str = ""
    certificate: str = ""
    profile: str = ""
    health: str = ""
    cause: str = ""
    rollout: str = ""

    @property
    def title(self) -> str:
        """What stands at the top of the screen."""
        of = (
            self.cause or self.health
            if self.kind is PageKind.CAUSE
            else self.rollout or f"{self.host} {self.certificate}".strip()
        )
        return f"{self.kind.value} {of}".strip()


FLEET: Final = Page(PageKind.FLEET)
SUMMARY: Final = Page(PageKind.SUMMARY)
HELP: Final = Page(PageKind.HELP)
ROLLOUTS: Final = Page(PageKind.ROLLOUTS)
INCIDENTS: Final = Page(PageKind.INCIDENTS)


class Topic(StrEnum):
    """What a page may ask the broker for, besides the watch."""

    HOST = "host"
    EVENTS = "events"
    ORDERS = "orders"
    ROLLOUTS = "rollouts"
    ROLLOUT = "rollout"
    """Not asked for but heard: the broker tells of each change."""
    INCIDENTS = "incidents"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Question:
    """One call; the answer is kept under it. Empty fields ask for all."""

    topic: Topic
    host: str = ""
    profile: str = ""
    rollout: str = ""


def questions(page: Page) -> Sequence[Question]:
    """What has to be asked for a page, and again every few seconds while it is shown."""
    of = page.host, page.profile
    match page.kind:
        case PageKind.HOST:
            return (Question(Topic.HOST, page.host),)
        case PageKind.CERTIFICATE:
            host = Question(Topic.HOST, page.host)
            return (host, Question(Topic.ORDERS, *of), Question(Topic.EVENTS, *of))
        case PageKind.EVENTS:
            return (Question(Topic.EVENTS, *of),)
        case PageKind.ORDERS:
            return (Question(Topic.ORDERS, *of),)
        case PageKind.ROLLOUT:
            return (Question(Topic.ROLLOUT, rollout=page.rollout), Question(Topic.BUDGET))
        case _:
            return _LISTS.get(page.kind, ())


_LISTS: Final = {
    PageKind.ROLLOUTS: (Question(Topic.ROLLOUTS),),
    PageKind.INCIDENTS: (Question(Topic.INCIDENTS),),
}


Span = tuple[str, Style]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page. `opens` is what Enter opens there; `key` tells it from the others, however they change."""

    spans: tuple[Span, ...]
    opens: Page | None = None
    key: str = ""

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(text for text, _ in self.spans)

    def fitted(self, width: int) -> "Line":
        """At most so many columns of it."""
        if text_width(self.text) <= width:
            return self
        spans: list[Span] = []
        for text, style in self.spans:
            room = width - sum(text_width(each) for each, _ in spans)
            if text_width(text) >= room:  # what follows is left out, even where this just fits
                spans.append((cut(f"{text}>" if text_width(text) == room else text, room), style))
                break
            spans.append((text, style))
        return replace(self, spans=tuple(spans))


class Lines:
    """The lines of a page: made when they are drawn, since of 10,000 some twenty are."""

    def __init__(self, keys: Sequence[str], line: Callable[[int], Line], header: Line | None = None) -> None:
        self.keys = keys
        self.line = line
        self.header = header
        """Stands above the lines, and doesn't scroll."""

    @classmethod
    def of(cls, lines: Iterable[Line]) -> "Lines":
        """Of lines that are there already."""
        made = list(lines)
        return cls([line.key or str(number) for number, line in enumerate(made)], made.__getitem__)

    def __len__(self) -> int:
        return len(self.keys)

    def first_that_opens(self, most: int) -> int:
        """The first of so many lines that opens something; the first of all where none does."""
        shown = range(min(len(self.keys), most))
        return next((number for number in shown if self.line(number).opens is not None), 0)

    def after(self, first: Sequence[Line]) -> "Lines":
        """These behind others, with what was the header between."""
        head = [*first, *([] if self.header is None else [self.header])]
        keys = [f"head {number}" for number in range(len(head))]

        def line(number: int) -> Line:
            return head[number] if number < len(head) else self.line(number - len(head))

        return Lines([*keys, *self.keys], line)


def line(text: str, style: Style = Style.PLAIN, *, opens: Page | None = None, key: str = "") -> Line:
    """A line of one colour."""
    return Line(((text, style),), opens, key)


def cut(text: str, width: int) -> str:
    """At most so many columns."""
    return _CUTTER.cut(text, max(width, 0))


def padded(text: str, width: int) -> str:
    """Exactly so many columns."""
    text = cut(text, width)
    return text + " " * (width - text_width(text))


def wrapped(text: str, width: int, limit: int = 4000) -> list[str]:
    """A text in lines of at most so many columns, at spaces where there are some."""
    lines, rest = [], " ".join(printable(text, limit).split())
    while text_width(rest) > width > 0:
        end = width
        while text_width(rest[:end]) > width:
            end -= 1
        space = rest.rfind(" ", 1, end + 1)
        end = space if space > 0 else max(end, 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, rest] if rest or not lines else lines


def facts(pairs: Iterable[tuple[str, str]], width: int) -> list[Line]:
    """Names with their values, which are wrapped under themselves; on a narrow screen under their names."""
    pairs = [(name, value) for name, value in pairs if value]
    room = max((text_width(name) for name, _ in pairs), default=0) + 2
    lines: list[Line] = []
    for name, value in pairs:
        if width - room >= 20:
            rows = [(padded(name, room), text) for text in wrapped(value, width - room)]
        else:
            rows = [(name, ""), *(("  ", text) for text in wrapped(value, width - 2))]
        for number, (label, text) in enumerate(rows):
            left = label if number == 0 or width - room < 20 else " " * room
            lines.append(Line(((left, Style.DIM), (text, Style.PLAIN))))
    return lines
