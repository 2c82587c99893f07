"""Which pages are open, in which order hosts stand, what was typed; and what a key makes of it. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from certplane.ctl.watch.fleet import Order
from certplane.ctl.watch.page import FLEET, HELP, INCIDENTS, ROLLOUTS, SUMMARY, Line, Page, PageKind

_ORDERS: Final = tuple(Order)


@dataclass(frozen=True, slots=True)
class View:
    """An open page, and which of its lines are wanted."""

    page: Page
    text: str = ""


@dataclass(frozen=True, slots=True)
class Screen:
    """All that keys have made of it. `views` is the way to the page that is shown; it is the last.

    While `typing`, keys are letters of its filter.
    """

    views: tuple[View, ...] = (View(FLEET),)
    order: Order = Order.WORST
    backwards: bool = False
    paused: bool = False
    typing: bool = False
    left: bool = False

    @property
    def view(self) -> View:
        """What is shown."""
        return self.views[-1]

    @property
    def page(self) -> Page:
        """Its page."""
        return self.view.page

    def opened(self, page: Page) -> "Screen":
        """With another page on top; one that is open already is gone back to, so that the way stays short."""
        for number, view in enumerate(self.views):
            if view.page == page:
                return replace(self, views=self.views[: number + 1])
        return replace(self, views=(*self.views, View(page)))

    def filtered(self, text: str) -> "Screen":
        """With the lines of this page that have these words."""
        return replace(self, views=(*self.views[:-1], replace(self.view, text=text)))

    def back(self) -> "Screen":
        """Without the filter; without one, on the page before."""
        if self.view.text:
            return self.filtered("")
        return replace(self, views=self.views[:-1]) if len(self.views) > 1 else self


def press(screen: Screen, key: str, at: Line | None, character: str | None = None) -> Screen:
    """What a key makes of the screen. A key that means nothing changes nothing.

    Args:
        screen: As it is.
        key: By its name.
        at: The line of the cursor.
        character: What the key types, if it types something.
    """
    if screen.typing and key != "ctrl+c":
        return _typed(screen, key, character)
    made = _KEYS.get(key)
    return screen if made is None else made(screen, at)


def _typed(screen: Screen, key: str, character: str | None) -> Screen:
    text = screen.view.text
    match key:
        case "enter":
            return replace(screen, typing=False)
        case "escape":
            return replace(screen.filtered(""), typing=False)
        case "backspace" if not text:
            return replace(screen, typing=False)
        case "backspace":
            return screen.filtered(text[:-1])
        case "ctrl+u":
            return screen.filtered("")
        case _:
            return screen.filtered(text + character) if character is not None and character.isprintable() else screen


def _open(screen: Screen, at: Line | None) -> Screen:
    return screen if at is None or at.opens is None else screen.opened(at.opens)


def _opens(kind: PageKind) -> "_Pressed":
    """Opens a page about the same host and certificate."""
    return lambda screen, _: screen.opened(replace(screen.page, kind=kind, health="", cause="", rollout=""))


def _next_order(screen: Screen, _: Line | None) -> Screen:
    return replace(screen, order=_ORDERS[(_ORDERS.index(screen.order) + 1) % len(_ORDERS)])


_Pressed = Callable[[Screen, Line | None], Screen]
_KEYS: Final[Mapping[str, _Pressed]] = {
    "enter": _open,
    "escape": lambda screen, _: screen.back(),
    "backspace": lambda screen, _: screen.back(),
    "s": lambda screen, _: screen.opened(SUMMARY),
    "f": lambda screen, _: screen.opened(FLEET),
    "R": lambda screen, _: screen.opened(ROLLOUTS),
    "i": lambda screen, _: screen.opened(INCIDENTS),
    "question_mark": lambda screen, _: screen.opened(HELP),
    "a": _opens(PageKind.EVENTS),
    "r": _opens(PageKind.ORDERS),
    "o": _next_order,
    "O": lambda screen, _: replace(screen, backwards=not screen.backwards),
    "slash": lambda screen, _: replace(screen, typing=True),
    "p": lambda screen, _: replace(screen, paused=not screen.paused),
    "space": lambda screen, _: replace(screen, paused=not screen.paused),
    "q": lambda screen, _: replace(screen, left=True),
    "ctrl+c": lambda screen, _: replace(screen, left=True),
}
"""By the names that Textual gives keys."""
