"""The one codec between reports and messages of `certplane.v1`; the rest of `fleet_report` doesn't know the messages.

It is made of the dataclasses: a field is the message's field of its name, its type says how it is converted, and what
it may hold (`fields`) stands beside it. So a new field is a line of the proto file and one of `model`. Reading checks
everything, since hosts are known and not trusted; writing checks nothing.
"""

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from certplane.fleet_report.fields import FieldError
from certplane.fleet_report.model import (
    AgentMode,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalCause,
    RenewalStep,
)
from certplane.rpc.times import put_time, span_of, time_of
from certplane.runtime.health import HealthActor, HealthWord
from certplane.v1 import renewal_pb2 as pb

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")
Read = Callable[[Any, str], Any]
"""The value of a message's field of this name.

Raises:
    FieldError: it is none.
"""
Write = Callable[[Any, str, Any], None]
"""Sets a message's field of this name; never to None."""


def _words(members: Iterable[tuple[str, int]], prefix: str, kind: type[E]) -> Mapping[int, E]:
    """The words of an enum's numbers; the one for unspecified has none."""
    known = {word.name: word for word in kind}
    return {number: known[name.removeprefix(prefix)] for name, number in members if number}


STATES: Final = _words(pb.CertificateStatus.State.items(), "STATE_", CertificateState)
STEPS: Final = _words(pb.CertificateStatus.Step.items(), "STEP_", RenewalStep)
CAUSES: Final = _words(pb.Renewal.Cause.items(), "CAUSE_", RenewalCause)
HEALTHS: Final = _words(pb.Health.items(), "HEALTH_", HealthWord)
CAUSE_NUMBERS: Final = {word: pb.Renewal.Cause.ValueType(number) for number, word in CAUSES.items()}
HEALTH_NUMBERS: Final = {word: pb.Health.ValueType(number) for number, word in HEALTHS.items()}
ACTORS: Final = _words(pb.HealthActor.items(), "HEALTH_ACTOR_", HealthActor)
ACTOR_NUMBERS: Final = {word: pb.HealthActor.ValueType(number) for number, word in ACTORS.items()}

AGENT_MODES: Final = _words(pb.AgentMode.items(), "AGENT_MODE_", AgentMode)

_ENUMS: Final[Mapping[type, Mapping[int, StrEnum]]] = {
    CertificateState: STATES,
    RenewalStep: STEPS,
    AgentMode: AGENT_MODES,
}
_UNKNOWN_IS_NONE: Final = frozenset({AgentMode})
"""Enums of which a newer peer's word that isn't known here is none: it says nothing that must be understood."""
_WIRE_NAMES: Final = {"not_before": "not_before_time", "not_after": "not_after_time"}
"""Of the fields whose name in the message is another one."""


def read_status(message: pb.CertificateStatus) -> CertificateStatus:
    """What a host says of a certificate.

    Raises:
        FieldError: a field holds what it mustn't.
    """
    return _STATUS.read(message)


def write_status(status: CertificateStatus, message: pb.CertificateStatus) -> None:
    """Set the fields of an empty message; those that only the broker knows stay unset."""
    _STATUS.write(status, message)


def read_facts(message: pb.StreamRenewalStatusRequest.Hello) -> HostFacts:
    """What a host says of itself.

    Raises:
        FieldError: a field holds what it mustn't.
    """
    return _FACTS.read(message)


def write_facts(facts: HostFacts, message: pb.StreamRenewalStatusRequest.Hello | pb.Host) -> None:
    """Set the fields of an empty message that are facts of a host."""
    _FACTS.write(facts, message)


class _Codec(Generic[T]):
    """The fields of one dataclass, compiled once: looking at types costs more than all the rest."""

    def __init__(self, kind: Any) -> None:
        self._kind: Callable[..., T] = kind
        hints = get_type_hints(kind, include_extras=True)
        self._fields: list[tuple[str, str, Read, Write]] = []
        for field in dataclasses.fields(kind):
            optional = field.default is not dataclasses.MISSING
            read, write = _conversion(hints[field.name], required=not optional)
            self._fields.append((field.name, _WIRE_NAMES.get(field.name, field.name), read, write))

    def read(self, message: Message) -> T:
        return self._kind(*[read(message, wire) for _, wire, read, _ in self._fields])

    def write(self, value: T, message: Message) -> None:
        for name, wire, _, write in self._fields:
            found = getattr(value, name)
            if found is not None:
                write(message, wire, found)


def _conversion(hint: Any, *, required: bool) -> tuple[Read, Write]:
    """How a field of this type is read and written."""
    if get_origin(hint) in {Union, types.UnionType}:
        (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
    if hint is datetime:
        return _read_time, _write_time
    if hint is int:
        return _read_count, setattr
    if hint in _ENUMS:
        return _enum(_ENUMS[hint], required=required, lenient=hint in _UNKNOWN_IS_NONE)
    if hint is HeldCertificate:
        return _nested(_Codec[HeldCertificate](hint))
    kind, bound = get_args(hint)  # a text, a list of texts or a span, which says what it may hold
    if kind is timedelta:
        return _span(bound), _write_span
    return _bounded(bound), _extend if get_origin(kind) is tuple else setattr


def _read_time(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    moment = time_of(getattr(message, name))
    if moment is None:
        raise FieldError(name, "is not a time")
    return moment


def _write_time(message: Any, name: str, value: datetime) -> None:
    put_time(value, getattr(message, name))


def _read_count(message: Any, name: str) -> int:
    count: int = getattr(message, name)
    if count < 0:
        raise FieldError(name, "must not be negative")
    return count


def _span(bound: Any) -> Read:
    check = bound.check

    def read(message: Any, name: str) -> Any:
        return check(name, span_of(getattr(message, name))) if message.HasField(name) else None

    return read


def _write_span(message: Any, name: str, value: timedelta) -> None:
    getattr(message, name).FromTimedelta(value)


def _enum(words: Mapping[int, StrEnum], *, required: bool, lenient: bool) -> tuple[Read, Write]:
    numbers = {word: number for number, word in words.items()}
    problem = "is required, and one that this broker knows" if required else "isn't one that this broker knows"

    def read(message: Any, name: str) -> StrEnum | None:
        number = getattr(message, name)
        word = words.get(number)
        if word is None and (required or (number and not lenient)):
            raise FieldError(name, problem)
        return word

    def write(message: Any, name: str, value: StrEnum) -> None:
        setattr(message, name, numbers[value])

    return read, write


def _nested(codec: _Codec[Any]) -> tuple[Read, Write]:
    def read(message: Any, name: str) -> Any:
        if not message.HasField(name):
            return None
        try:
            return codec.read(getattr(message, name))
        except FieldError as error:
            raise FieldError(f"{name}.{error.field}", error.problem) from error

    def write(message: Any, name: str, value: Any) -> None:
        inner = getattr(message, name)
        inner.SetInParent()
        codec.write(value, inner)

    return read, write


def _bounded(bound: Any) -> Read:
    check = bound.check

    def read(message: Any, name: str) -> Any:
        return check(name, getattr(message, name))

    return read


def _extend(message: Any, name: str, value: Iterable[str]) -> None:
    getattr(message, name).extend(value)


_FACTS: Final = _Codec[HostFacts](HostFacts)
_STATUS: Final = _Codec[CertificateStatus](CertificateStatus)
