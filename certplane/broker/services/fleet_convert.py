"""The fleet's values as messages, each under the size of a message; and what an operator's request may hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.fleet.view import CertificateView, HostView
from certplane.broker.renewal.model import HeldUp, Selection
from certplane.broker.services.convert import invalid_request
from certplane.broker.services.filter_convert import HOST_KINDS, hexadecimal, known_words, label_of
from certplane.broker.services.renewal_convert import renewal_message, status_message
from certplane.fleet_report.messages import HEALTH_NUMBERS, HEALTHS, STATES, write_facts
from certplane.fleet_report.model import CertificateState, CertificateStatus
from certplane.pki.names import has_dns_syntax, shown_name
from certplane.rpc.channel import MAX_MESSAGE_BYTES
from certplane.rpc.status import status_from_refusal
from certplane.rpc.times import put_time, span_of, time_of
from certplane.runtime.health import Health, HealthWord
from certplane.runtime.text import printable, serial_digits
from certplane.v1 import fleet_pb2, renewal_pb2

MESSAGE_ROOM: Final = MAX_MESSAGE_BYTES - 4096
"""What a message's lists may take: tokens, lengths and tags need the rest."""

MOST_OF_BRIEF: Final = 5
"""Certificates of a host in a brief list (proto, ListHostsRequest.brief)."""
_MAX_REASON: Final = 500
_MAX_SPREAD: Final = timedelta(days=30)
_MOST_LABELS: Final = 100
_PENDING_ROOM: Final = MESSAGE_ROOM // 4


def host_message(view: HostView) -> renewal_pb2.Host:
    """A host without its certificates."""
    message = renewal_pb2.Host(
        name=view.record.host,
        label=view.label,
        connected=view.broker is not None,
        displaced_streams=view.displaced_streams,
        contested=view.contested,
        kind=HOST_KINDS[view.kind],
        blocked_reason=printable(view.blocked, _MAX_REASON),
        health=HEALTH_NUMBERS[view.word],
        certificate_count=len(view.record.certificates),
        labels=view.labels,
        watch_count=view.watch_count,
    )
    if view.broker is not None:
        message.broker_id, message.broker_name = view.broker.broker_id, view.broker.name
        message.broker_address = view.broker.address
    stream = view.record.stream
    if stream is not None:
        write_facts(stream.facts, message)
        message.identity_serial_number = stream.identity_serial_number
        put_time(stream.identity_not_after, message.identity_expire_time)
        put_time(stream.connect_time, message.connect_time)
        put_time(stream.last_seen_time, message.last_seen_time)
        message.source_ip = stream.source_ip
        if view.broker is None and stream.end_time is not None:
            put_time(stream.end_time, message.disconnect_time)
        if stream.clock_skew is not None:
            message.clock_skew.FromTimedelta(stream.clock_skew)
    if view.record.directive_error is not None:
        message.directive_error.CopyFrom(status_from_refusal(view.record.directive_error))
    room = _PENDING_ROOM
    for plan in view.pending:
        renewal = renewal_message(plan)
        room -= renewal.ByteSize()
        if room < 0:
            break
        message.pending_renewals.append(renewal)
    return message


def add_certificates(
    message: renewal_pb2.Host, certificates: Iterable[CertificateStatus], health: Mapping[str, Health]
) -> int:
    """Add as many as fit into a message of their own; returns how many."""
    size = message.ByteSize()
    count = 0
    for certificate in certificates:
        status = status_message(certificate, health[certificate.name])
        size += status.ByteSize() + 8
        if size > MESSAGE_ROOM:
            break
        message.certificates.append(status)
        count += 1
    return count


def add_worst(message: renewal_pb2.Host, view: HostView) -> None:
    """Add all certificates; where they don't fit, those of the worst health. By name either way."""
    if add_certificates(message, view.record.certificates, view.health) == len(view.record.certificates):
        return
    del message.certificates[:]
    add_certificates(
        message, sorted(view.record.certificates, key=lambda each: view.health[each.name].word.rank), view.health
    )
    message.certificates.sort(key=lambda each: each.name)


def fleet_certificate(view: CertificateView) -> fleet_pb2.FleetCertificate:
    """A certificate with its holder."""
    return fleet_pb2.FleetCertificate(
        host=view.host.name,
        label=view.host.label,
        kind=HOST_KINDS[view.host.kind],
        certificate=status_message(view.status, view.health),
        issuer=view.certificate.issuer,
        public_key_sha256=view.certificate.public_key_sha256,
        labels=view.host.labels,
    )


def add_first(message: renewal_pb2.Host, view: HostView) -> None:
    """Add the few certificates of the worst health, those first."""
    worst = sorted(view.record.certificates, key=lambda each: view.health[each.name].word.rank)
    add_certificates(message, worst[:MOST_OF_BRIEF], view.health)


# What operators ask.


def held_up_message(held: HeldUp) -> fleet_pb2.RequestRenewalResponse.HeldUp:
    """A certificate of a request that something holds up."""
    message = fleet_pb2.RequestRenewalResponse.HeldUp(
        host=held.host,
        certificate_name=held.name,
        certificate_id=held.certificate_id,
        reason=held.reason[:_MAX_REASON],
    )
    if held.next_attempt_time is not None:
        put_time(held.next_attempt_time, message.next_attempt_time)
    return message


def states_of(numbers: Iterable[int]) -> frozenset[CertificateState]:
    """The states of a filter.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    return known_words("states", numbers, STATES)


def healths_of(numbers: Iterable[int]) -> frozenset[HealthWord]:
    """The healths of a filter.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    return known_words("healths", numbers, HEALTHS)


class Named(Protocol):
    """Who is called how in the policy: `FleetView`."""

    def identities(self, name_or_label: str) -> frozenset[str]:
        """The identities of this name or label; the name itself, if policy doesn't have it."""
        ...

    def hosts_with(self, labels: Iterable[str]) -> frozenset[str]:
        """The identities of the hosts that have one of these labels, as KEY=VALUE."""
        ...


_OF_CERTIFICATES: Final = (
    "profiles",
    "issuers",
    "certificate_ids",
    "dns_names",
    "serial_numbers",
    "public_keys_sha256",
    "issued_before_time",
    "window_open",
    "incident_id",
)
"""Fields of a selection that identities don't have."""


def selection_of(message: fleet_pb2.Selection, named: Named) -> Selection:
    """Which certificates are selected, by what hosts are called at this moment.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    names = []
    for text in message.dns_names:
        name = text.lower()
        if not has_dns_syntax(name):  # no more: it is only looked for among names
            raise invalid_request("selection.dns_names", f"has {shown_name(text)}, which is no DNS name")
        names.append(name)
    if message.identities:
        set_fields = {field.name for field, _ in message.ListFields()}
        for field in _OF_CERTIFICATES:
            if field in set_fields:
                problem = "can't be set with identities, which have none: name hosts or labels, or all"
                raise invalid_request(f"selection.{field}", problem)
    hosts = frozenset(name for host in _texts("selection.hosts", message.hosts) for name in named.identities(host))
    labels = _texts("selection.labels", message.labels)
    if len(labels) > _MOST_LABELS:
        raise invalid_request("selection.labels", f"has more than {_MOST_LABELS} labels")
    if labels:
        found = named.hosts_with("=".join(label_of("selection.labels", text)) for text in labels)
        hosts = found & hosts if hosts else found
    serials, keys = "selection.serial_numbers", "selection.public_keys_sha256"
    return Selection(
        identities=message.identities,
        all=message.all,
        hosts=tuple(sorted(hosts)),
        profiles=_texts("selection.profiles", message.profiles),
        issuers=_texts("selection.issuers", message.issuers),
        certificate_ids=_texts("selection.certificate_ids", message.certificate_ids),
        dns_names=tuple(names),
        labels=labels,
        serial_numbers=tuple(serial_digits(hexadecimal(serials, text)) for text in message.serial_numbers),
        public_keys_sha256=tuple(hexadecimal(keys, text) for text in message.public_keys_sha256),
        issued_before=_moment(message.issued_before_time) if message.HasField("issued_before_time") else None,
        window_open=message.window_open,
        incident_id="".join(_texts("selection.incident_id", [message.incident_id] if message.incident_id else ())),
    )


def _moment(stamp: Timestamp) -> datetime:
    moment = time_of(stamp)
    if moment is None:
        raise invalid_request("selection.issued_before_time", "is no moment between the years 1 and 9999")
    return moment


def _texts(field: str, texts: Collection[str]) -> tuple[str, ...]:
    if not all(text and text.isprintable() for text in texts):
        raise invalid_request(field, "has an empty text, or one that isn't printable")
    return tuple(texts)


def spread_of(duration: Duration | None) -> timedelta:
    """Over how long renewals are spread.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, negative or over 30 days.
    """
    if duration is None:
        return timedelta()
    spread = span_of(duration)
    if spread is None or spread > _MAX_SPREAD:
        raise invalid_request("spread_duration", "must be between 0 and 30 days")
    return spread


def text_of(field: str, text: str) -> str:
    """A reason for people.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if not text.strip():
        raise invalid_request(field, "is required")
    if len(text.encode()) > _MAX_REASON or not text.isprintable():
        raise invalid_request(field, f"must be at most {_MAX_REASON} bytes, printable")
    return text
