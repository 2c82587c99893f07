"""Reading what outside services send: `Retry-After`, and text that ends up in logs, audit records and answers.

Pure. Nothing in here fails on any input.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = timedelta(days=7)
"""The longest window of a public CA's limits (Let's Encrypt's 5 per week); a longer wait is a mistake or an attack."""

_MOST_DIGITS = 12
"""More digits than any sensible wait; beyond, `int` and `timedelta` get slow or overflow."""


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The wait that a `Retry-After` header asks for (RFC 9110 10.2.3: seconds or an HTTP date).

    Args:
        value: the header, None if there was none.
        now: aware; a date in the header is compared with it.

    Returns:
        Between nothing and `LONGEST_RETRY_AFTER`; None if the header is absent or makes no sense.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        if len(text.lstrip("0")) > _MOST_DIGITS:
            return LONGEST_RETRY_AFTER
        return min(timedelta(seconds=int(text)), LONGEST_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(text)
        # An HTTP date is GMT; without a zone (or with "-0000") the parser leaves it naive.
        wait = (when if when.tzinfo else when.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(wait, timedelta()), LONGEST_RETRY_AFTER)


def one_line(text: object, limit: int) -> str:
    """`text` on one line: without control, format and surrogate characters, at most `limit` characters.

    What an outsider wrote must not move a terminal's cursor, forge a log line or turn text around (bidi overrides).
    Anything but a string becomes empty.
    """
    if not isinstance(text, str):
        return ""
    kept = "".join(
        " " if character.isspace() else character
        for character in text[: 4 * limit]
        if character.isspace() or not unicodedata.category(character).startswith("C")
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
