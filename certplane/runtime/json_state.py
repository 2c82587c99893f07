"""Small JSON files that a program writes for itself and reads back: frozen dataclasses in, frozen dataclasses out.

What is read may be anything: half a file, another program's, a disk's rot, somebody's edit, an attack. `decode` returns
what its type says or raises `StateError`, and nothing else: sizes and nesting are bounded, numbers and times are ones
that can be calculated with, text can be encoded and has no lone surrogates. Members that this release doesn't know are
passed over, and those that an older one didn't write have their defaults.

Times are in RFC 3339, spans in seconds (of a file's own members, not of those inside them), enums by value.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of a file; the largest that is written has some hundred kilobytes."""
_FORMAT: Final = 1
_MOST_NUMBER: Final = 2**53
"""What JSON's readers agree upon (RFC 8259 6)."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_LONGEST: Final = timedelta(days=365_000)

T = TypeVar("T")


class StateError(ValueError):
    """It isn't what this program writes."""


def encode(value: Any, **members: Any) -> bytes:
    """A dataclass as a JSON object for people to read, with its format's number and these members before its own."""
    return encode_object({**members, **members_of(value)})


def encode_object(members: Mapping[str, Any]) -> bytes:
    """Members as `encode` writes those of a dataclass."""
    return msgspec.json.format(json_bytes({"format": _FORMAT, **members}), indent=1) + b"\n"


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8 of what JSON has: a lone surrogate, of a file's name say, becomes a question mark."""
    try:
        return msgspec.json.encode(value, enc_hook=plain_text)
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def members_of(value: Any) -> dict[str, Any]:
    """A dataclass as what JSON has."""
    members: dict[str, Any] = msgspec.to_builtins(value, builtin_types=(timedelta,), enc_hook=plain_text)
    return {name: each.total_seconds() if isinstance(each, timedelta) else each for name, each in members.items()}


def plain_text(value: Any) -> str:
    """What msgspec doesn't know: a kind of text of our own."""
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError


def decode(kind: type[T], data: bytes, *, with_format: bool = True) -> T:
    """The dataclass of `encode`; without its format's number, where it was never written with one.

    Raises:
        StateError: it is none.
    """
    return value_of(kind, decode_object(data, with_format=with_format))


def decode_object(data: bytes, *, with_format: bool = True) -> dict[str, Any]:
    """The members of a JSON object, which is one of this format.

    Raises:
        StateError: it is none, or larger or deeper than what is ever written.
    """
    if len(data) > MOST_BYTES:
        raise StateError(f"{len(data)} octets are too many")
    try:
        document = msgspec.json.decode(data)
    except RecursionError as error:
        raise StateError("nested too deep") from error
    except ValueError as error:
        raise StateError(f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise StateError("no JSON object")
    if with_format and document.get("format") != _FORMAT:
        raise StateError("written by another release")
    return document


def value_of(kind: type[T], members: Any) -> T:
    """The dataclass from members, of JSON.

    Raises:
        StateError: a member is missing, or of another type.
    """
    if not isinstance(members, dict):
        raise StateError("not an object")
    kept: Any = kind
    spans = {name: _span(members[name]) for name in _spans(kept) if members.get(name) is not None}
    try:
        value = msgspec.convert({**members, **spans} if spans else members, kind)
    except (ValueError, RecursionError) as error:  # RecursionError: as in `decode_object`
        raise StateError(str(error)) from error
    sound: T = _sound(value)
    return sound


@functools.cache
def _spans(kind: Any) -> tuple[str, ...]:
    """The fields that are spans of time: msgspec knows them as text alone."""
    return tuple(name for name, hint in get_type_hints(kind).items() if timedelta in (hint, *get_args(hint)))


def _span(found: Any) -> timedelta:
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise StateError("no number of seconds")
    if abs(found) > _LONGEST.total_seconds():
        raise StateError("too long")
    return timedelta(seconds=found)


def _sound(found: Any) -> Any:
    """The value, if one can calculate with each number and time in it; the same object where nothing is to be changed.

    Raises:
        StateError: one can't.
    """
    kind: Any = type(found)
    if kind is datetime:
        return _time(found)
    if kind is int:
        if abs(found) > _MOST_NUMBER:
            raise StateError("a number too large")
        return found
    if kind is tuple:
        return tuple(map(_sound, found))
    changed = {}
    for name in _calculable(kind):
        before = getattr(found, name)
        if before is not None and (after := _sound(before)) is not before:
            changed[name] = after
    return dataclasses.replace(found, **changed) if changed else found


@functools.cache
def _calculable(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass that hold numbers or times, or may have some inside; none of what is no dataclass."""
    if not dataclasses.is_dataclass(kind):
        return ()
    hints = get_type_hints(kind)
    return tuple(name for name, hint in hints.items() if not {str, bool, timedelta} & {hint, *get_args(hint)})


def _time(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise StateError("a time without a zone")
    try:
        moment = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError as error:
        raise StateError(str(error)) from error
    if not _EARLIEST <= moment <= _LATEST:
        raise StateError("no time that can be calculated with")
    return moment
