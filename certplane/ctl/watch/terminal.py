"""The full screen: an application of Textual that draws what `drawing` says, and passes keys on to `screen`."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style as Paint
from textual import events
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.strip import Strip
from textual.widget import Widget
from typing_extensions import override

from certplane.ctl.watch.drawing import Drawing, Place
from certplane.ctl.watch.known import Known
from certplane.ctl.watch.page import FLEET, Line, Lines, Page
from certplane.ctl.watch.screen import Screen, View, press
from certplane.ctl.watch.viewport import Viewport
from certplane.runtime.terminal import Style

_PAINTS: Final = {
    Style.PLAIN: Paint(),
    Style.BAD: Paint(color="red", bold=True),
    Style.WARNING: Paint(color="yellow"),
    Style.GOOD: Paint(color="green"),
    Style.DIM: Paint(dim=True),
    Style.STRONG: Paint(bold=True),
}
_CURSOR: Final = Paint(reverse=True)
_REDRAW: Final = 0.5
"""Seconds: messages of a large fleet come faster than anybody reads, and times pass while none comes."""
_STEPS: Final = {"up": -1, "k": -1, "down": 1, "j": 1}
_PAGES: Final = {"pageup": -1, "ctrl+b": -1, "pagedown": 1, "ctrl+f": 1}
_ENDS: Final = {"home": -1, "g": -1, "end": 1, "G": 1}


class _Rows(Widget):
    """Lines that are made as they are drawn."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self.lines = Lines.of([])
        self.view: Viewport | None = None

    def draw(self, lines: Lines, view: Viewport | None = None) -> None:
        """Show these; with a `view`, what of them it says, and its cursor."""
        self.lines, self.view = lines, view
        self.refresh()

    @override
    def render_line(self, y: int) -> Strip:
        number = y + (self.view.first if self.view is not None else 0)
        if number >= len(self.lines):
            return Strip.blank(self.size.width)
        at_cursor = self.view is not None and number == self.view.cursor
        over = _CURSOR if at_cursor else Paint()
        shown = self.lines.line(number).fitted(self.size.width)
        segments = [Segment(text, _PAINTS[style] + over) for text, style in shown.spans]
        return Strip(segments).adjust_cell_length(self.size.width, over)


class WatchApp(App[None]):
    """The application. It shows what `known` is at the moment; whoever changes that calls `changed`.

    Args:
        known: What is heard.
        clock: The time.
        opened: Told when another page is open.
        asked: Told when somebody doesn't want to wait for the next question, or for a broker that is away.
        page: What is open at first.
    """

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [("ctrl+z", "suspend_process"), ("ctrl+r", "ask")]
    CSS = """
    Screen { background: ansi_default; color: ansi_default; layout: vertical; overflow: hidden; }
    _Rows { background: ansi_default; color: ansi_default; }
    #top { height: 1; }
    #body { height: 1fr; }
    #bottom { height: 2; }
    """

    def __init__(
        self,
        known: Known,
        clock: Callable[[], datetime],
        opened: Callable[[], None],
        asked: Callable[[], None],
        page: Page = FLEET,
    ) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.shown = Screen().opened(page)
        self.drawing = Drawing()
        self._known = known
        self._now = clock
        self._opened = opened
        self._asked = asked
        self._still: tuple[Known, datetime, int] | None = None
        self._views: dict[View, Viewport] = {}
        self._dirty = True
        self._second = 0
        self._begun = False

    @override
    def compose(self) -> ComposeResult:
        yield _Rows("top")
        yield _Rows("body")
        yield _Rows("bottom")

    def on_mount(self) -> None:
        """Begin to draw."""
        self._begun = True
        self.set_interval(_REDRAW, self._tick)
        self._draw()

    def on_resize(self) -> None:
        """Another size, other columns."""
        self.call_after_refresh(self._draw)

    def changed(self) -> None:
        """Something is known that wasn't."""
        self._dirty = True

    @override
    async def on_event(self, event: events.Event) -> None:
        # Here, and not where keys arrive that were passed on to widgets: each is handled before the next one is looked
        # at, however fast they are typed.
        match event:
            case events.Key(key=key, character=character) if not self._is_bound(key):
                if self._begun:
                    self._press(key, character)
            case events.Paste(text=text):
                for each in text if self.shown.typing else "":
                    self._press(each, each)
            case _:
                await super().on_event(event)

    def _is_bound(self, key: str) -> bool:
        return key in {"ctrl+z", "ctrl+r"} and not self.shown.typing

    def _press(self, key: str, character: str | None) -> None:
        height, keys = self._body.size.height, self._body.lines.keys
        view = self._viewport()
        step = _STEPS.get(key, 0) + _PAGES.get(key, 0) * max(height - 1, 1) + _ENDS.get(key, 0) * len(keys)
        if step and not self.shown.typing:
            view.move(step, keys, height)
        else:
            at = self._body.lines.line(view.cursor) if view.cursor < len(keys) else None
            self._take(press(self.shown, key, at, character))
        self._draw()

    def action_ask(self) -> None:
        """Ask the broker now, or try to reach it."""
        self._asked()

    def _take(self, screen: Screen) -> None:
        before, self.shown = self.shown, screen
        if screen.left:
            self.exit()
        if screen.paused != before.paused:
            self._still = (self._known.standing_still(), self._now(), self._known.changes) if screen.paused else None
        if screen.page != before.page:
            self._opened()

    def _tick(self) -> None:
        second = int(self._now().timestamp())
        if self._dirty or second != self._second:
            self._second = second
            self._draw()

    def _draw(self) -> None:
        self._dirty = False
        known, moment = self._known, self._now()
        behind = 0
        if self._still is not None:
            known, moment, changes = self._still
            behind = self._known.changes - changes
        width, height = self.size.width, self.size.height
        lines = self.drawing.body(self.shown, known, lambda: moment, width)
        top = self.drawing.top(self.shown, known, moment, width, height)
        if lines.header is not None:
            top.append(lines.header)
        self._rows("top").styles.height = len(top)
        self._rows("top").draw(Lines.of(top))
        room = max(height - len(top) - 2, 1)
        view = self._viewport()
        view.settle(lines.keys, room, lines.first_that_opens(room))
        self._body.draw(lines, view)
        place = Place(view.first, min(room, len(lines) - view.first), len(lines), behind)
        bottom: Sequence[Line] = self.drawing.bottom(self.shown, known, moment, place, width)
        self._rows("bottom").draw(Lines.of(bottom))

    def _viewport(self) -> Viewport:
        return self._views.setdefault(View(self.shown.page), Viewport())

    @property
    def _body(self) -> _Rows:
        return self._rows("body")

    def _rows(self, name: str) -> _Rows:
        return self.query_one(f"#{name}", _Rows)
