"""What is asked of lists: the filters that are typed, as the broker's messages. Pure.

One grammar for options and for `--filter KEY=VALUE`: the key is the option's name without its dashes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from certplane.config.durations import HOW_TO_TYPE_A_MOMENT, DurationError, parse_moment, parse_span
from certplane.ctl.arguments.broker import ORDER_STATES
from certplane.ctl.arguments.command import SORTS
from certplane.ctl.arguments.fleet import REVOCATION_REASONS
from certplane.ctl.session import misuse
from certplane.ctl.show.words import HEALTHS, STATES
from certplane.rpc.times import put_time
from certplane.runtime.text import serial_digits
from certplane.v1 import audit_pb2, certificate_pb2, fleet_pb2, order_pb2, renewal_pb2

_KINDS: Final = {"host": renewal_pb2.HOST_KIND_HOST, "service": renewal_pb2.HOST_KIND_SERVICE}
_ORDERS: Final = dict(
    zip(
        SORTS,
        (
            fleet_pb2.FLEET_ORDER_HEALTH,
            fleet_pb2.FLEET_ORDER_NAME,
            fleet_pb2.FLEET_ORDER_EXPIRE_TIME,
            fleet_pb2.FLEET_ORDER_RENEW_TIME,
            fleet_pb2.FLEET_ORDER_LAST_SEEN_TIME,
        ),
        strict=True,
    )
)
REVOCATIONS: Final = dict(
    zip(
        REVOCATION_REASONS,
        (
            certificate_pb2.REVOCATION_REASON_UNSPECIFIED,
            certificate_pb2.REVOCATION_REASON_KEY_COMPROMISE,
            certificate_pb2.REVOCATION_REASON_AFFILIATION_CHANGED,
            certificate_pb2.REVOCATION_REASON_SUPERSEDED,
            certificate_pb2.REVOCATION_REASON_CESSATION_OF_OPERATION,
        ),
        strict=True,
    )
)
"""Reasons of a revocation as they are typed."""
_ORDER_STATES: Final = {word: certificate_pb2.Order.State.Value(f"STATE_{word.upper()}") for word in ORDER_STATES}

Word = Callable[[str], Any]


def _text(word: str) -> str:
    return word


def label_of(word: str) -> str:
    """KEY=VALUE, as a host has it in the policy.

    Raises:
        ConfigurationError: it isn't of that form.
    """
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise misuse(f"{word}: is no label", "write it as KEY=VALUE, such as ring=canary")
    return word


def _digest(word: str) -> str:
    return word.lower().replace(":", "")


def _one_of(key: str, known: Mapping[str, Any], other: str = "") -> Word:
    def read(word: str) -> Any:
        found = known.get(word.lower().replace("-", "_"))
        if found is None:
            also = f"; {other}" if other else ""
            raise misuse(f"--{key} {word}: there is no such {key}", f"use one of: {', '.join(known)}{also}")
        return found

    return read


_LISTS: Final[Mapping[str, tuple[str, Word]]] = {
    "host": ("hosts", _text),
    "label": ("labels", label_of),
    "kind": ("kinds", _one_of("kind", _KINDS)),
    "health": ("healths", _one_of("health", HEALTHS, f"or --state with one of: {', '.join(STATES)}")),
    "state": ("states", _one_of("state", STATES, f"or --health with one of: {', '.join(HEALTHS)}")),
    "cause": ("causes", _text),
    "profile": ("profiles", _text),
    "issuer": ("issuers", _text),
    "name": ("dns_names", str.lower),
    "serial": ("serial_numbers", serial_digits),
    "key": ("public_keys_sha256", _digest),
    "agent-version": ("agent_versions", _text),
}
"""Keys with several values: the field of FleetFilter, and what a word stands for."""
_SPANS: Final = {
    "expiring-within": "expiring_within",
    "renewing-within": "renewing_within",
    "unheard-for": "unheard_for",
}
_DIGESTS: Final = {"lacks-root": "lacks_broker_root_sha256"}
"""Keys with one SHA-256, however it is written."""
_SWITCHES: Final = {"disconnected": "disconnected_only", "blocked": "blocked_only"}


def fleet_filter(options: argparse.Namespace) -> fleet_pb2.FleetFilter:
    """What the options of `add_filter` pick.

    Raises:
        ConfigurationError: a word stands for nothing.
    """
    wanted = fleet_pb2.FleetFilter()
    for key in _LISTS:
        for word in getattr(options, key.replace("-", "_")):
            _put(wanted, key, word)
    for field in _SPANS.values():
        given: timedelta | None = getattr(options, field)
        if given is not None:
            getattr(wanted, field).FromTimedelta(given)
    if options.lacks_root:
        wanted.lacks_broker_root_sha256 = _digest(options.lacks_root)
    for key, field in _SWITCHES.items():
        if getattr(options, key):
            setattr(wanted, field, True)
    for text in options.filter:
        _put_text(wanted, text)
    return wanted


def filter_of(texts: Iterable[str]) -> fleet_pb2.FleetFilter:
    """What texts like `health=expired,overdue`, `unheard-for=2d` or `blocked` pick.

    Raises:
        ConfigurationError: one can't be understood.
    """
    wanted = fleet_pb2.FleetFilter()
    for text in texts:
        _put_text(wanted, text)
    return wanted


def selection(options: argparse.Namespace, command: str, now: datetime) -> fleet_pb2.Selection:
    """The certificates that the options of `add_selection` pick.

    Raises:
        ConfigurationError: none is given, or one can't be understood.
    """
    made = fleet_pb2.Selection(
        all=options.all,
        hosts=options.host,
        labels=map(label_of, options.label),
        profiles=options.profile,
        issuers=options.issuer,
        certificate_ids=options.certificate,
        dns_names=map(str.lower, options.name),
        serial_numbers=map(serial_digits, options.serial),
        public_keys_sha256=map(_digest, options.key),
        window_open=options.window_open,
        incident_id=options.incident or "",
    )
    if options.issued_before is not None:
        put_time(moment_of("--issued-before", options.issued_before, now), made.issued_before_time)
    if not made.ByteSize():
        raise misuse(f"{command}: nothing is selected", "say which with --host, --profile, ..., or --all")
    return made


def newer_part(wanted: fleet_pb2.Selection) -> fleet_pb2.Selection:
    """What of a selection older brokers pass over: to them it picks more than it says. Empty if nothing is."""
    return fleet_pb2.Selection(
        labels=wanted.labels,
        serial_numbers=wanted.serial_numbers,
        public_keys_sha256=wanted.public_keys_sha256,
        issued_before_time=wanted.issued_before_time if wanted.HasField("issued_before_time") else None,
        window_open=wanted.window_open,
        incident_id=wanted.incident_id,
    )


def _put_text(wanted: fleet_pb2.FleetFilter, text: str) -> None:
    key, equals, words = text.partition("=")
    if key in _SWITCHES and not equals:
        setattr(wanted, _SWITCHES[key], True)
    elif key in _DIGESTS and words:
        setattr(wanted, _DIGESTS[key], _digest(words))
    elif key in _SPANS and equals:
        getattr(wanted, _SPANS[key]).FromTimedelta(_span(f"--filter {text}", words))
    elif key in _LISTS and words:
        for word in words.split(","):
            _put(wanted, key, word)
    else:
        keys = ", ".join([*(f"{each}=..." for each in (*_LISTS, *_SPANS, *_DIGESTS)), *_SWITCHES])
        raise misuse(f"--filter {text}: can't be understood", f"use one of: {keys}")


def _put(wanted: fleet_pb2.FleetFilter, key: str, word: str) -> None:
    field, read = _LISTS[key]
    getattr(wanted, field).append(read(word))


def _span(what: str, text: str) -> timedelta:
    try:
        return parse_span(text)
    except DurationError as error:
        raise misuse(f"{what}: is not a span of time", "write it like 30m, 24h or 7d") from error


def order_of(options: argparse.Namespace) -> fleet_pb2.FleetOrder.ValueType:
    """What --sort stands for."""
    return _ORDERS[options.sort]


def words_of(key: str, words: Iterable[str], known: Mapping[str, Any]) -> list[Any]:
    """What words of a repeated option stand for; `known` has them in lower case with underscores.

    Raises:
        ConfigurationError: one stands for nothing.
    """
    return list(map(_one_of(key, known), words))


def order_filter(options: argparse.Namespace) -> order_pb2.OrderFilter:
    """What the options of `orders` pick.

    Raises:
        ConfigurationError: a word stands for nothing.
    """
    state = _one_of("state", _ORDER_STATES)
    wanted = order_pb2.OrderFilter(
        order_ids=options.id,
        states=[state(word) for word in options.state],
        open_only=options.open,
        identities=options.identity,
        profiles=options.profile,
        issuers=options.issuer,
        dns_names=map(str.lower, options.name),
        reasons=map(str.upper, options.error),
    )
    if options.within is not None:
        wanted.within.FromTimedelta(options.within)
    return wanted


def audit_filter(options: argparse.Namespace, now: datetime) -> audit_pb2.AuditFilter:
    """What the options of `audit list` and `audit tail` pick.

    Raises:
        ConfigurationError: a time can't be understood.
    """
    wanted = audit_pb2.AuditFilter(
        identities=options.identity,
        dns_names=map(str.lower, options.name),
        serial_numbers=map(serial_digits, options.serial),
        event_types=options.type,
        reason_codes=map(str.upper, options.error),
        ids=options.id,
        profiles=options.profile,
        severity=options.severity or "",
    )
    put_period(wanted, options, now)
    return wanted


def put_period(
    message: audit_pb2.AuditFilter | audit_pb2.ExportAuditLogRequest, options: argparse.Namespace, now: datetime
) -> None:
    """Set the times of --since and --until.

    Raises:
        ConfigurationError: one can't be understood, or the end isn't after the start.
    """
    since, until = (
        None if text is None else moment_of(f"--{option}", text, now)
        for option, text in (("since", options.since), ("until", options.until))
    )
    if since is not None and until is not None and until <= since:
        raise misuse("--until isn't after --since", "exchange them")
    if since is not None:
        put_time(since, message.start_time)
    if until is not None:
        put_time(until, message.end_time)


def moment_of(option: str, text: str, now: datetime) -> datetime:
    """A time that is typed, as `parse_moment` takes it.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise misuse(f"{option}: {error}", HOW_TO_TYPE_A_MOMENT) from error
