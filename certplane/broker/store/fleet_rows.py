"""Rows of the fleet's tables to domain values and back. Pure.

A value is its fields in their order: times and spans are microseconds, a certificate's status is one JSON array that is
only read back whole. A new field is added at the end, with a default: a shorter array, of an older release, has it.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from certplane.broker.fleet.model import HeldUp, HostStream
from certplane.broker.store.rows import from_micros, to_micros_or_none
from certplane.broker.store.statements import Row
from certplane.fleet_report.model import CertificateStatus, HostFacts
from certplane.runtime.json_state import json_bytes

_FACTS: Final = tuple(HostFacts.__dataclass_fields__)
_HOST, _, *_OTHERS = HostStream.__dataclass_fields__
STREAM_COLUMNS: Final = (_HOST, *_FACTS, *_OTHERS)
"""What `stream_from_row` reads and `stream_row` gives, in this order."""

_MICROSECOND: Final = timedelta(microseconds=1)
_encode_ascii: Final = json.JSONEncoder(separators=(",", ":")).encode
_decode: Final = msgspec.json.Decoder().decode

T = TypeVar("T")
Convert = Callable[[Any], Any]


class _Cells(Generic[T]):
    """Between a dataclass and its cells; what each field needs is found once, by its type."""

    def __init__(self, kind: Any) -> None:
        self._kind: Callable[..., T] = kind
        hints = get_type_hints(kind)
        self._names = [field.name for field in dataclasses.fields(kind)]
        self._writes, self._reads = zip(*[_conversion(hints[name]) for name in self._names], strict=True)

    def of(self, value: T) -> tuple[Any, ...]:
        """The cells of a value."""
        found = [getattr(value, name) for name in self._names]
        return tuple([each if write is None else write(each) for each, write in zip(found, self._writes, strict=True)])

    def value(self, cells: Iterable[Any]) -> T:
        """The value of cells; fewer are an older release's, more a newer one's."""
        found = zip(cells, self._reads, strict=False)
        return self._kind(*[cell if read is None or cell is None else read(cell) for cell, read in found])


def _conversion(hint: Any) -> tuple[Convert | None, Convert | None]:
    """How a field of this type becomes a cell, and a cell that isn't None the field; None: as it is."""
    if get_origin(hint) in {Union, types.UnionType}:
        (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
    if get_origin(hint) is tuple:
        return None, tuple
    if hint is datetime:
        return to_micros_or_none, from_micros
    if hint is timedelta:
        return lambda span: None if span is None else span // _MICROSECOND, lambda span: timedelta(microseconds=span)
    if issubclass(hint, StrEnum):
        words: dict[str, StrEnum | None] = {"": None, **{word.value: word for word in hint}}
        return lambda word: word or "", words.__getitem__
    if dataclasses.is_dataclass(hint):
        cells = _Cells[Any](hint)
        return lambda value: None if value is None else cells.of(value), cells.value
    return None, None


_status: Final = _Cells[CertificateStatus](CertificateStatus)
_stream: Final = _Cells[HostStream](HostStream)
_held_up: Final = _Cells[HeldUp](HeldUp)


def encode_status(status: CertificateStatus) -> str:
    """The status as a JSON array."""
    return _encode(_status.of(status))


def decode_status(text: str) -> CertificateStatus:
    """The status of `encode_status`."""
    return _status.value(_decode(text))


def stream_row(stream: HostStream) -> tuple[object, ...]:
    """The columns of a stream's row."""
    host, facts, *others = _stream.of(stream)
    return (host, *facts, *others)


def stream_from_row(row: Row) -> HostStream:
    """The stream of a row of `STREAM_COLUMNS`."""
    host, *others = row
    return _stream.value((host, others[: len(_FACTS)], *others[len(_FACTS) :]))


def encode_held_up(held: Sequence[HeldUp]) -> str | None:
    """What holds up certificates of a request, as a column; None for nothing."""
    return _encode([_held_up.of(one) for one in held]) if held else None


def decode_held_up(text: str | None) -> tuple[HeldUp, ...]:
    """What `encode_held_up` made a column of."""
    return tuple(map(_held_up.value, _decode(text or "[]")))


def _encode(cells: Sequence[object]) -> str:
    """Their JSON in ASCII: whatever a host says is then text that every database takes."""
    data = json_bytes(cells)
    return data.decode() if data.isascii() else _encode_ascii(_decode(data))
