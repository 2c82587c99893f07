"""Small JSON files that a program writes for itself and reads back: frozen values in, frozen values out.

What is read may be anything: half a file, another program's, a disk's rot, somebody's edit, an attack. `decode_object`
and `value_of` return what their types say or raise `StateError`, and nothing else: sizes and nesting are bounded,
numbers and times are ones that can be calculated with, text can be encoded and has no lone surrogates. Members that
this release doesn't know are passed over, and those that an older one didn't write have their defaults.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of a file; the largest that is written has some hundred kilobytes."""
_MOST_NUMBER: Final = 2**53
"""What JSON's readers agree upon (RFC 8259 6)."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_LONGEST: Final = timedelta(days=365_000)

T = TypeVar("T")


class StateError(ValueError):
    """It isn't what this program writes."""


def decode_object(data: bytes, *, format_number: int | None) -> dict[str, Any]:
    """The members of a JSON object whose `format` is this number; of any where none is given.

    Raises:
        StateError: it is none, or larger or deeper than what is ever written.
    """
    if len(data) > MOST_BYTES:
        raise StateError(f"{len(data)} octets are too many")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise StateError("nested too deep") from error
    except ValueError as error:
        raise StateError(f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise StateError("no JSON object")
    if format_number is not None and document.get("format") != format_number:
        raise StateError("written by another release")
    return document


def value_of(kind: type[T], members: Mapping[str, Any]) -> T:
    """A dataclass from the members that `members_of` made of one.

    Raises:
        StateError: a member is missing, or of another type.
    """
    if not isinstance(members, Mapping):
        raise StateError("not an object")
    values = {}
    for name, hint, required in _fields(kind):
        if name in members:
            try:
                values[name] = _value(hint, members[name])
            except StateError as error:
                raise StateError(f"{name}: {error}") from error
        elif required:
            raise StateError(f"{name} is missing")
    return kind(**values)


def members_of(value: Any) -> dict[str, Any]:
    """A dataclass as members: times in ISO 8601, spans in seconds, enums by value."""
    return {name: _member(getattr(value, name)) for name, _, _ in _fields(type(value))}


_known_fields: dict[Any, tuple[tuple[str, Any, bool], ...]] = {}
"""Of the few types that a program keeps: resolving hints costs more than all the rest."""


def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it is required, for each field of a dataclass."""
    found = _known_fields.get(kind)
    if found is None:
        hints, missing = get_type_hints(kind), dataclasses.MISSING
        found = _known_fields[kind] = tuple(
            (field.name, hints[field.name], field.default is missing and field.default_factory is missing)
            for field in dataclasses.fields(kind)
        )
    return found


def _member(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case StrEnum():
            return value.value
        case tuple():
            return [_member(each) for each in value]
        case _ if dataclasses.is_dataclass(value):
            return members_of(value)
        case _:
            return value


def _value(hint: Any, found: Any) -> Any:
    arguments = get_args(hint)
    if get_origin(hint) in {Union, types.UnionType}:
        if found is None and types.NoneType in arguments:
            return None
        (hint,) = (each for each in arguments if each is not types.NoneType)
        return _value(hint, found)
    if get_origin(hint) is tuple:
        if not isinstance(found, list):
            raise StateError("not a list")
        return tuple(_value(arguments[0], each) for each in found)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value_of(hint, found)
    return _plain(hint, found)


def _plain(hint: Any, found: Any) -> Any:
    if hint is bool and isinstance(found, bool):
        return found
    if hint is int and isinstance(found, int) and not isinstance(found, bool) and abs(found) <= _MOST_NUMBER:
        return found
    if hint is timedelta:
        return _span(found)
    if isinstance(found, str):
        return _of_text(hint, found)
    raise StateError("of another type")


def _span(found: Any) -> timedelta:
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise StateError("no number of seconds")
    if abs(found) > _LONGEST.total_seconds():
        raise StateError("too long")
    return timedelta(seconds=found)


def _of_text(hint: Any, found: str) -> Any:
    try:
        found.encode()
        if hint is str:
            return found
        if hint is datetime:
            return _time(datetime.fromisoformat(found))
        if issubclass(hint, StrEnum):
            return hint(found)
    except (ValueError, OverflowError) as error:  # a lone surrogate, a time that is none, an unknown name
        raise StateError(str(error)) from error
    raise StateError("of another type")


def _time(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise StateError("a time without a zone")
    moment = moment.astimezone(UTC)
    if not _EARLIEST <= moment <= _LATEST:
        raise StateError("no time that can be calculated with")
    return moment
