"""Which lines of a page are on the screen, and where the cursor is. Pure."""

from collections.abc import Sequence


class Viewport:
    """A cursor that stays with what it is on, however the lines around it change.

    Before anybody has moved it, it is on the first line that opens something: there is the worst. Of all lines it stays
    on the first, too, for whoever went there wants to see what is worst.
    """

    def __init__(self) -> None:
        self.cursor = 0
        """The line of the cursor, from 0."""
        self.first = 0
        """The first line on the screen."""
        self._key = ""
        self._moved = False

    def settle(self, keys: Sequence[str], height: int, begin: int = 0) -> None:
        """The lines are these now, and so many of them fit; `begin` is where the cursor is before it was moved."""
        at = self.cursor if self._moved else begin
        if self._moved and at and not (at < len(keys) and keys[at] == self._key) and self._key in keys:
            at = keys.index(self._key)
        self._to(at, keys, height)

    def move(self, by: int, keys: Sequence[str], height: int) -> None:
        """The cursor goes down so many lines; up if it is negative."""
        self._moved = True
        self._to(self.cursor + by, keys, height)

    def _to(self, at: int, keys: Sequence[str], height: int) -> None:
        last = max(len(keys) - 1, 0)
        height = max(height, 1)
        self.cursor = min(max(at, 0), last)
        self._key = keys[self.cursor] if keys else ""
        lowest = max(len(keys) - height, 0)
        self.first = min(max(self.first, self.cursor - height + 1, 0), self.cursor, lowest)
