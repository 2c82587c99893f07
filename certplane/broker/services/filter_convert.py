"""An operator's filter and order as messages, checked once for all lists of the fleet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.model import IdentityKind
from certplane.broker.services.convert import invalid_request
from certplane.fleet_report.messages import HEALTHS, STATES
from certplane.pki.names import has_dns_syntax, shown_name
from certplane.rpc.times import span_of
from certplane.runtime.text import serial_digits
from certplane.v1 import fleet_pb2, renewal_pb2

HOST_KINDS: Final = {
    IdentityKind.HOST: renewal_pb2.HOST_KIND_HOST,
    IdentityKind.SERVICE: renewal_pb2.HOST_KIND_SERVICE,
}
_KINDS: Final[Mapping[int, IdentityKind]] = {int(number): kind for kind, number in HOST_KINDS.items()}

_MOST_VALUES: Final = 100
"""Of one field: a message of more would cost the broker more than any question is worth."""
_LONGEST_VALUE: Final = 256
_LONGEST_SPAN: Final = timedelta(days=3660)
_SHA256_DIGITS: Final = 64
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]+")

_Word = TypeVar("_Word")


def filter_of(message: fleet_pb2.FleetFilter, field: str = "filter") -> FleetFilter:
    """What a request's `field` picks.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, with the field's name.
    """

    def texts(name: str) -> frozenset[str]:
        return frozenset(_texts(f"{field}.{name}", getattr(message, name)))

    def words(name: str, table: Mapping[int, _Word]) -> frozenset[_Word]:
        return known_words(f"{field}.{name}", getattr(message, name), table)

    def span(name: str) -> timedelta | None:
        return _span(f"{field}.{name}", getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type] # by its name

    return FleetFilter(
        hosts=texts("hosts"),
        kinds=words("kinds", _KINDS),
        disconnected_only=message.disconnected_only,
        unheard_for=span("unheard_for"),
        blocked_only=message.blocked_only,
        agent_versions=texts("agent_versions"),
        lacks_broker_root_sha256=_root(f"{field}.lacks_broker_root_sha256", message.lacks_broker_root_sha256),
        healths=words("healths", HEALTHS),
        causes=texts("causes"),
        states=words("states", STATES),
        expiring_within=span("expiring_within"),
        renewing_within=span("renewing_within"),
        profiles=texts("profiles"),
        issuers=texts("issuers"),
        dns_names=frozenset(_dns_names(f"{field}.dns_names", message.dns_names)),
        serial_numbers=frozenset(
            serial_digits(hexadecimal(f"{field}.serial_numbers", text)) for text in texts("serial_numbers")
        ),
        public_keys_sha256=frozenset(
            hexadecimal(f"{field}.public_keys_sha256", text) for text in texts("public_keys_sha256")
        ),
        labels=frozenset(label_of(f"{field}.labels", text) for text in texts("labels")),
    )


def known_words(field: str, numbers: Iterable[int], table: Mapping[int, _Word]) -> frozenset[_Word]:
    """What the enum's numbers of a field stand for.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    found = set()
    for number in numbers:
        word = table.get(number)
        if word is None:
            raise invalid_request(field, "has one that this broker doesn't know")
        found.add(word)
    return frozenset(found)


def _texts(field: str, texts: Collection[str]) -> Collection[str]:
    if len(texts) > _MOST_VALUES:
        raise invalid_request(field, f"has more than {_MOST_VALUES} values")
    for text in texts:
        if not text or len(text) > _LONGEST_VALUE or not text.isprintable():
            problem = f"has an empty text, one that isn't printable, or one of more than {_LONGEST_VALUE} characters"
            raise invalid_request(field, problem)
    return texts


def _dns_names(field: str, texts: Collection[str]) -> Iterable[str]:
    for text in _texts(field, texts):
        name = text.lower()
        if not has_dns_syntax(name):  # no more: it is only looked for among names
            raise invalid_request(field, f"has {shown_name(text)}, which is no DNS name")
        yield name


def label_of(field: str, text: str) -> tuple[str, str]:
    """Key and value of a label in the policy.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, with the field's name.
    """
    key, _, value = text.partition("=")
    if not (key and value):
        raise invalid_request(field, f"has {shown_name(text)}, which isn't KEY=VALUE, such as ring=canary")
    return key, value


def hexadecimal(field: str, text: str) -> str:
    """As it is stored, from what other programs show: with colons between octets, or in upper case."""
    digits = text.replace(":", "").lower()
    if _HEXADECIMAL.fullmatch(digits) is None:
        raise invalid_request(field, f"has {shown_name(text)}, which isn't hexadecimal")
    return digits


def _root(field: str, text: str) -> str:
    digits = hexadecimal(field, text) if text else ""
    if digits and len(digits) != _SHA256_DIGITS:
        raise invalid_request(field, "must be a SHA-256, 64 hexadecimal digits")
    return digits


def _span(field: str, duration: Duration) -> timedelta:
    span = span_of(duration)
    if span is None or span > _LONGEST_SPAN:
        raise invalid_request(field, "must be between 0 and ten years")
    return span
