"""What a field of a report may hold, said beside it: `Annotated[str, Text(500)]`. The codec of messages checks it.

Words that name something are refused where they don't match. Texts for people lose what can't be printed instead: an
error message of some hook shall not keep a host from reporting it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from certplane.pki.names import has_dns_syntax, shown_name
from certplane.runtime.text import printable


class FieldError(ValueError):
    """A field holds what it mustn't: `problem` goes on after the field's name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Word:
    """A text that matches as a whole."""

    pattern: re.Pattern[str]
    problem: str

    def check(self, field: str, text: str) -> str:
        """The same text.

        Raises:
            FieldError: it doesn't match.
        """
        if self.pattern.fullmatch(text) is None:
            raise FieldError(field, self.problem)
        return text


@dataclass(frozen=True, slots=True)
class Printable:
    """A text of one to so many bytes of UTF-8, all of it printable."""

    most: int

    def check(self, field: str, text: str) -> str:
        """The same text.

        Raises:
            FieldError: it is empty, longer, or has what can't be printed.
        """
        if not text or len(text.encode()) > self.most or not text.isprintable():
            raise FieldError(field, f"must be 1 to {self.most} bytes, printable")
        return text


@dataclass(frozen=True, slots=True)
class Text:
    """A text for people, of at most so many bytes of UTF-8."""

    most: int

    def check(self, field: str, text: str) -> str:
        """The text, printable.

        Raises:
            FieldError: it is longer.
        """
        if len(text.encode()) > self.most:
            raise FieldError(field, f"must be at most {self.most} bytes")
        return printable(text, self.most)


@dataclass(frozen=True, slots=True)
class DnsNames:
    """At most so many names. No more is asked of them: they are what a host's configuration says, and grant nothing."""

    most: int

    def check(self, field: str, names: Sequence[str]) -> tuple[str, ...]:
        """The names, sorted.

        Raises:
            FieldError: they are too many, or one is no DNS name.
        """
        if len(names) > self.most:
            raise FieldError(field, f"must be at most {self.most} names")
        for name in names:
            if not has_dns_syntax(name):
                raise FieldError(field, f"has {shown_name(name)}, which is no DNS name in lower case and A-labels")
        return tuple(sorted(names))


@dataclass(frozen=True, slots=True)
class Words:
    """At most so many texts that each match."""

    most: int
    word: Word

    def check(self, field: str, texts: Sequence[str]) -> tuple[str, ...]:
        """The same texts.

        Raises:
            FieldError: they are too many, or one doesn't match.
        """
        if len(texts) > self.most:
            raise FieldError(field, f"must be at most {self.most}")
        return tuple(self.word.check(field, text) for text in texts)


@dataclass(frozen=True, slots=True)
class Span:
    """A time that is longer than none and at most so long."""

    most: timedelta

    def check(self, field: str, span: timedelta | None) -> timedelta:
        """The same span.

        Raises:
            FieldError: it is none, or longer.
        """
        if span is None or not timedelta() < span <= self.most:
            raise FieldError(field, f"must be longer than nothing and at most {self.most.days} days")
        return span
