"""Dataclasses as rows and as JSON, by the types of their fields: a field added to a dataclass is stored.

| a field that is | in a column | inside JSON |
|---|---|---|
| text, number, octets | itself | itself |
| yes or no | 0 or 1 | itself |
| time, span | whole microseconds, times since 1970 UTC | the same |
| enum | its value | its value; for None, empty text |
| tuple, dataclass | JSON text: a dataclass is an array of its fields | an array |
| `Refusal` | JSON text: an object, empty members left out | an object |
| None, and an empty tuple that is the default | NULL | null, `[]` |

A new field of what is inside JSON comes last and has a default: a shorter array, of an older release, has it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from typing_extensions import override

from certplane.broker.model import CertificateRecord, DenyEntry, IdentityUse, Order
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store.rows import from_micros, to_micros
from certplane.errors import Refusal
from certplane.runtime.json_state import plain_text

T = TypeVar("T")
_Conversion = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]
"""From a field's value to its cell and back; None leaves it as it is. Neither is called with None."""

_MICROSECOND: Final = timedelta(microseconds=1)
_encode: Final = msgspec.json.Encoder(enc_hook=plain_text).encode
_escape: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode_json(value: Any) -> str:
    """JSON in ASCII: whatever a client or a CA has said is then text that every database and log takes."""
    try:
        return _encode(value).decode("ascii")
    except UnicodeError:  # letters of other scripts, or a lone surrogate
        return _escape(value)


def decode_json(text: str) -> Any:
    """The value of `encode_json`."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # a lone surrogate
        return json.loads(text)


class Cells(Generic[T]):
    """Between the values of a dataclass and arrays of its fields, as they stand in JSON."""

    def __init__(self, kind: Callable[..., T]) -> None:
        """What each field needs is found once, by its type; fields with the metadata `stored` False are passed over."""
        self._kind = kind
        hints = get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.metadata.get("stored", True)]  # type: ignore[arg-type]
        self.names: Final = tuple(field.name for field in fields)
        get = attrgetter(*self.names)
        self._get = get if len(fields) > 1 else lambda value: (get(value),)
        self._by_name = any(field.kw_only for field in fields)
        self._writes: list[tuple[int, Callable[[Any], Any], Any]] = []
        self._reads: list[tuple[int, Callable[[Any], Any], Any]] = []
        for index, field in enumerate(fields):
            default = None if field.default is dataclasses.MISSING else field.default
            write, read = self._conversion(hints[field.name], default)
            if write is not None:
                self._writes.append((index, write, self._none(hints[field.name])))
            if read is not None:
                self._reads.append((index, read, default))

    def of(self, value: T) -> tuple[Any, ...]:
        """The cells of a value."""
        cells = list(self._get(value))
        for index, write, none in self._writes:
            cells[index] = none if cells[index] is None else write(cells[index])
        return tuple(cells)

    def value(self, cells: Sequence[Any]) -> T:
        """The value of cells; fewer are an older release's, more a newer one's. None is the field's default."""
        values = list(cells[: len(self.names)])
        for index, read, default in self._reads:
            if index < len(values):
                values[index] = default if values[index] is None else read(values[index])
        return self._kind(**dict(zip(self.names, values, strict=False))) if self._by_name else self._kind(*values)

    def _conversion(self, hint: Any, default: object) -> _Conversion:  # noqa: ARG002 - columns look at it
        return _conversion(hint)

    def _none(self, hint: Any) -> Any:
        hint = _without_none(hint)
        return "" if isinstance(hint, type) and issubclass(hint, StrEnum) else None


class Columns(Cells[T]):
    """Between the values of a dataclass and rows of `names`: its table has a column of that name for each field."""

    def values(self, value: T) -> dict[str, Any]:
        """The columns by name, as a statement takes them."""
        return dict(zip(self.names, self.of(value), strict=True))

    @override
    def _none(self, hint: Any) -> Any:
        return None

    @override
    def _conversion(self, hint: Any, default: object) -> _Conversion:
        hint = _without_none(hint)
        if hint is bool:
            return int, bool
        write, read = _conversion(hint)
        if get_origin(hint) is not tuple and not dataclasses.is_dataclass(hint):
            return write, read

        def encode(value: Any) -> str | None:
            return None if value == default else encode_json(value if write is None else write(value))

        def decode(text: str) -> Any:
            value = decode_json(text)
            return value if read is None else read(value)

        # Every answer from the cache has the same names again.
        return encode, functools.lru_cache(maxsize=1024)(decode)


def _conversion(hint: Any) -> _Conversion:
    hint = _without_none(hint)
    if hint in _CONVERSIONS:
        return _CONVERSIONS[hint]
    if get_origin(hint) is tuple:
        item, *more = get_args(hint)
        write, read = _conversion(item) if more == [...] else (None, None)
        return (
            None if write is None else lambda values: [write(each) for each in values],
            tuple if read is None else lambda cells: tuple(map(read, cells)),
        )
    if dataclasses.is_dataclass(hint):
        cells = Cells(hint)  # type: ignore[arg-type] # mypy takes it for a value
        return cells.of, cells.value
    if issubclass(hint, StrEnum):
        return str, {"": None, **{word.value: word for word in hint}}.__getitem__
    return None, None


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
    return hint


def _refusal_members(refusal: Refusal) -> dict[str, Any]:
    """What there is of it; the call that it was the answer to is over."""
    members = zip(_REFUSAL.names, _REFUSAL.of(replace(refusal, request_id="")), strict=True)
    return {
        name: cell for name, cell in members if name == "message" or (cell is not None and cell not in ("", (), []))
    }


def _refusal(members: Mapping[str, Any]) -> Refusal:
    known = {"request_id": "", **members}
    return _REFUSAL.value([known.get(name) for name in _REFUSAL.names])


def encode_refusal(refusal: Refusal) -> str:
    """`refusal` as a column."""
    return encode_json(_refusal_members(refusal))


def decode_refusal(text: str) -> Refusal:
    """The refusal of `encode_refusal`."""
    return _refusal(decode_json(text))


@functools.lru_cache(maxsize=1024)
def decode_names(text: str) -> tuple[str, ...]:
    """The names of a `dns_names` column."""
    return tuple(decode_json(text))


_CONVERSIONS: Final[Mapping[Any, _Conversion]] = {
    datetime: (to_micros, from_micros),
    timedelta: (lambda span: span // _MICROSECOND, lambda micros: timedelta(microseconds=micros)),
    Refusal: (_refusal_members, _refusal),
}
_REFUSAL: Final = Cells(Refusal)
ORDER: Final = Columns(Order)
"""Its table has two columns more, which follow from these: `order_rows`."""
CERTIFICATE: Final = Columns(CertificateRecord)
PLAN: Final = Columns(RenewalPlan)
DENY_ENTRY: Final = Columns(DenyEntry)
IDENTITY_USE: Final = Cells(IdentityUse)
