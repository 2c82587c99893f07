"""What a peer says, as it may be shown."""

import pytest

from certplane.runtime.text import printable, printable_values, serial_digits

_SHOWN = {
    "plain text": ("the order waits", "the order waits"),
    "other scripts": ("schlüssel für 例え.jp ☂", "schlüssel für 例え.jp ☂"),
    "colours (CSI)": ("\x1b[31mred\x1b[0m", " [31mred [0m"),
    "a window title (OSC)": ("\x1b]0;title\x07x", " ]0;title x"),
    "C1 controls": ("a\x9b31mb\x85c", "a 31mb c"),
    "line breaks of every kind": ("a\nb\r\nc\x0bd\x0ce\u2028f\u2029g", "a b  c d e f g"),
    "a direction turned": ("a\u202eb\u2066c\u200fd\u061ce", "a b c d e"),
    "what can't be seen": ("a\u200bb\ufeffc\u00add", "a b c d"),
    "a lone surrogate": ("a\ud800b\udfffc", "a b c"),
    "NUL, tab and DEL": ("a\0b\tc\x7fd", "a b c d"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("text", "shown"), _SHOWN.values(), ids=_SHOWN)
def test_what_cannot_be_printed_is_a_space(text: str, shown: str) -> None:
    """Escape sequences, controls, turned text, line breaks and surrogates are spaces; all else stays as it is."""
    assert printable(text, 100) == shown


_CUT = {
    "as long as may be": ("a" * 10, 10, "a" * 10),
    "one too long": ("a" * 11, 10, "a" * 7 + "..."),
    "octets count": ("ü" * 6, 10, "üüü..."),
    "never half a character": ("a" + "€" * 4, 8, "a€..."),
    "much too long": ("\x1b" * 10_000_000, 8, "     ..."),
    "no room at all": ("abc", 0, ""),
    "room for less than the mark": ("abc", 2, ".."),
}


@pytest.mark.parametrize(("text", "limit", "shown"), _CUT.values(), ids=_CUT)
def test_longer_text_is_cut_and_says_so(text: str, limit: int, shown: str) -> None:
    """No more octets than the limit, whole characters, and `...` at the end of what was cut."""
    assert printable(text, limit) == shown
    assert len(printable(text, limit).encode()) <= limit


def test_values_are_cleaned_to_the_last_text() -> None:
    """JSON's own escaping leaves C1 controls and turned text as they are."""
    value = {"a\x9b": ["b\u202e", {"c": ("d\ud800", 7, None, True)}]}
    assert printable_values(value, 100) == {"a ": ["b ", {"c": ["d ", 7, None, True]}]}


@pytest.mark.parametrize(
    ("shown", "digits"),
    [("0A:1b:2C", "a1b2c"), ("00AB", "ab"), ("ab12", "ab12"), ("00", "0"), ("", ""), ("no serial", "no serial")],
)
def test_a_serial_number_is_found_however_it_is_shown(shown: str, digits: str) -> None:
    """As openssl and browsers show it."""
    assert serial_digits(shown) == digits
