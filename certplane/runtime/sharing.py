"""One object for equal texts, in bounded number: what `sys.intern` is for, without its memory.

Ten thousand open streams hold the same agent version and certificate names. `sys.intern` would make one object of each,
but keeps it for good on Python 3.12, where interned strings are immortal: whoever sends another text each time would
fill the memory. Here the oldest are let go, and a text that nobody holds any more is gone with them.
"""

from collections import OrderedDict
from typing import Final

_MOST: Final = 4_096
"""Texts: a fleet's agent versions, user agents and names of certificates. With the longest ones about 2 MB."""
_LONGEST: Final = 256
"""Characters. A longer text is hardly what many say alike."""


class SharedTexts:
    """The pool. For one thread."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._texts: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def share(self, text: str) -> str:
        """The text, the same object as the last equal one if that is still kept."""
        if len(text) > _LONGEST:
            return text
        known = self._texts.get(text)
        if known is not None:
            self._texts.move_to_end(known)
            return known
        self._texts[text] = text
        if len(self._texts) > self._most:
            self._texts.popitem(last=False)
        return text
