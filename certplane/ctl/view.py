"""What certplanectl shows: the fleet kept up to date from a watch's messages, and tables of it. Pure.

Machines get the messages themselves, a JSON object a line, in the proto3 JSON mapping: what grpcurl prints for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.errors import OperationError
from certplane.fleet_report import messages
from certplane.rpc.times import signed_span_of, time_of
from certplane.runtime.health import Health, HealthWord, Severity
from certplane.runtime.tables import moment_text, span_text, table_lines
from certplane.runtime.text import printable, printable_values
from certplane.v1 import fleet_pb2, renewal_pb2

_Status = renewal_pb2.CertificateStatus

STATES: Final = {word.value: _Status.State.ValueType(number) for number, word in messages.STATES.items()}
"""The states as people write them."""

HEALTHS: Final = {word.lower(): renewal_pb2.Health.ValueType(number) for number, word in messages.HEALTHS.items()}
"""The healths as people write them."""

_CAUSES: Final = {
    renewal_pb2.Renewal.CAUSE_LIFETIME: "its lifetime",
    renewal_pb2.Renewal.CAUSE_ISSUER: "the CA",
    renewal_pb2.Renewal.CAUSE_OPERATOR: "an operator",
    renewal_pb2.Renewal.CAUSE_REVOKED: "its revocation",
}
_ILL: Final = (_Status.STATE_FAILED, _Status.STATE_DEGRADED)
_MOST_TEXT: Final = 8000
_SKEW_SHOWN: Final = timedelta(seconds=5)

HEADER: Final[tuple[str, ...]] = ("HOST", "LINK", "CERTIFICATE", "HEALTH", "STATE", "VALID UNTIL", "RENEWAL", "SERVED")


class FleetView:
    """The fleet as a watch tells it."""

    def __init__(self) -> None:
        self._hosts: dict[str, renewal_pb2.Host] = {}
        self._told: set[str] = set()
        self.complete = False
        """Whether a snapshot has been seen to its end."""

    @property
    def hosts(self) -> Sequence[renewal_pb2.Host]:
        """The hosts by name."""
        return [self._hosts[name] for name in sorted(self._hosts)]

    def apply(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        """Take in one message."""
        match message.WhichOneof("event"):
            case "host":
                self._hosts[message.host.name] = message.host
                self._told.add(message.host.name)
            case "certificate_change":
                self._change(message.certificate_change)
            case "snapshot_end":
                self.complete = True
                self._hosts = {name: host for name, host in self._hosts.items() if name in self._told}
            case _:
                pass  # a newer broker's event

    def begin_again(self) -> None:
        """Another watch begins: what is known stays until its snapshot has ended, and then only what it told."""
        self.complete = False
        self._told.clear()

    def _change(self, change: renewal_pb2.WatchRenewalsResponse.CertificateChange) -> None:
        host = self._hosts.setdefault(change.host, renewal_pb2.Host(name=change.host))
        self._told.add(change.host)
        others = [each for each in host.certificates if each.name != change.certificate.name]
        kept = others if change.removed else sorted([*others, change.certificate], key=lambda each: each.name)
        del host.certificates[:]
        host.certificates.extend(kept)


def urgency(host: renewal_pb2.Host) -> tuple[int, bool]:
    """For sorting, the lowest first: how bad the worst of its certificates is; then whether it is there and itself."""
    worst = min(map(_rank, host.certificates), default=HealthWord.OK.rank)
    return worst, host.connected and not host.contested


def alarms(host: renewal_pb2.Host) -> bool:
    """Whether a certificate of its needs a person now.

    Raises:
        OperationError: the broker doesn't say.
    """
    healths = [each.health for each in host.certificates]
    if renewal_pb2.HEALTH_UNSPECIFIED in healths:
        remedy = "upgrade it, or go by the states"
        raise OperationError("the broker reports no health: it is older than certplanectl", remedy=remedy)
    words = (messages.HEALTHS.get(each) for each in healths)
    return any(word is not None and Health(word).severity is Severity.CRITICAL for word in words)


def change_line(message: renewal_pb2.WatchRenewalsResponse, now: datetime) -> str:
    """What a message after the snapshot says, in a line; empty if it is nothing for a person."""
    match message.WhichOneof("event"):
        case "host":
            ill = [
                f"{each.name} {_health(each)}" for each in _by_health(message.host.certificates) if not _is_well(each)
            ]
            link = _link(message.host, now) + _at(message.host, machine=False)
            line = ", ".join([f"{message.host.label or message.host.name}: {link}", *ill])
            return printable(line, _MOST_TEXT)
        case "certificate_change":
            change = message.certificate_change
            if change.removed:
                return printable(f"{change.host}: {change.certificate.name}: removed", _MOST_TEXT)
            error = f": {change.certificate.last_error}" if change.certificate.last_error else ""
            health = "" if _is_well(change.certificate) else f"{_health(change.certificate)}, "
            line = f"{change.host}: {change.certificate.name}: {health}{_state(change.certificate)}{error}"
            return printable(line, _MOST_TEXT)
        case _:
            return ""


def json_line(message: Message) -> str:
    """A message as one line of JSON."""
    try:
        members = MessageToDict(message)
    except (ValueError, SerializeToJsonError) as error:  # a time that is none
        raise OperationError(
            "the broker sent an invalid message", remedy="see its log, and check its release"
        ) from error
    return json.dumps(printable_values(members, _MOST_TEXT), ensure_ascii=False, separators=(",", ":"))


def fleet_rows(hosts: Iterable[renewal_pb2.Host], now: datetime) -> list[tuple[str, ...]]:
    """A row for each certificate, a host's worst first, and one for a host without any; the header first.

    Where the hosts are at several brokers, each says at which it is.
    """
    rows: list[tuple[str, ...]] = [HEADER]
    hosts = list(hosts)
    several = len(brokers := {host.broker_id: host.broker_name for host in hosts if host.broker_id}) > 1
    machines = len(set(brokers.values())) == len(brokers)
    for host in hosts:
        name, link = host.label or host.name, _link(host, now) + (_at(host, machine=machines) if several else "")
        if not host.certificates:
            rows.append((name, link, *["-"] * (len(HEADER) - 2)))
        for status in _by_health(host.certificates):
            held = _held(status)
            until = _moment(held.not_after_time, now) if held is not None else "-"
            served = _served(status)
            renewal = _moment(status.renew_time, now) if status.HasField("renew_time") else "-"
            rows.append((name, link, status.name, _health(status), _state(status), until, renewal, served))
            name = link = ""
    return rows


def host_lines(host: renewal_pb2.Host, now: datetime) -> list[str]:
    """One host with all that is known of it."""
    facts = [
        ("host", host.name if not host.label else f"{host.name} ({host.label} in the policy)"),
        ("link", _link(host, now) + (f" from {host.source_ip}" if host.source_ip else "")),
        *([("broker", _broker(host))] if host.broker_id else []),
        ("agent", host.agent_version or "unknown"),
        ("identity", _identity(host, now)),
    ]
    skew = (signed_span_of(host.clock_skew) if host.HasField("clock_skew") else None) or timedelta()
    if abs(skew) >= _SKEW_SHOWN:
        facts.append(("clock", f"{span_text(abs(skew))} {'ahead of' if skew > timedelta() else 'behind'} the broker's"))
    if host.displaced_streams:
        facts.append(("displaced", f"{host.displaced_streams} streams: is the identity in use on two machines?"))
    if host.contested:
        facts.append(("contested", "two holders of this identity; settle it with `certplane-broker identity allow`"))
    if host.HasField("directive_error"):
        facts.append(("refused", f"the last directive: {host.directive_error.message}"))
    lines = table_lines(facts)
    for status in _by_health(host.certificates):
        lines += ["", *_certificate_lines(status, now)]
    for renewal in host.pending_renewals:
        lines += ["", *_renewal_lines(renewal, now)]
    return lines


def renewal_line(answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool) -> str:
    """What a renewal request did, or would do."""
    if not answer.certificate_count:
        return "no certificate in force matches"
    verb = "would be" if dry_run else "will be"
    earlier = f"{answer.changed_count} of {_count(answer.certificate_count, 'matching certificate')} {verb} renewed"
    until = answer.last_renew_time
    by = f", the last at {_time(until):%Y-%m-%d %H:%M:%S}Z" if answer.changed_count and until.seconds else ""
    told = f"; {_count(answer.connected_host_count, 'host')} connected now, others when they come back"
    others = " (the others are due earlier anyway)" if answer.changed_count < answer.certificate_count else ""
    return f"{earlier}{by}{others}{told if answer.changed_count else ''}"


def held_up_lines(answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool) -> list[str]:
    """What holds up certificates of a renewal request: until when, why, and what is done about it."""
    lines = []
    for held in answer.held_up:
        what = f"{held.host}: {held.certificate_name}" if held.certificate_name else held.host
        if held.HasField("next_attempt_time"):
            told = "would be told" if dry_run else "is told"
            until = f"waited until {_time(held.next_attempt_time):%Y-%m-%d %H:%M:%S}Z and {told} to try now"
        else:
            until = "gets no certificate"
        lines.append(f"{what} {until}: {held.reason or 'no reason given'}")
    if (more := answer.held_up_count - len(answer.held_up)) > 0:
        lines.append(f"and {more} more")
    return lines


def _certificate_lines(status: renewal_pb2.CertificateStatus, now: datetime) -> list[str]:
    facts = [
        ("certificate", status.name + (f" (profile {status.profile})" if status.profile else "")),
        ("  health", f"{_health(status)}: {status.health_reason}" if status.health_reason else _health(status)),
    ]
    if status.health_remedy:
        facts.append(("  remedy", status.health_remedy))
    facts.append(("  state", f"{_state(status)}, since {_moment(status.update_time, now)}"))
    if status.dns_names:
        facts.append(("  names", " ".join(status.dns_names)))
    for word in ("issued", "installed", "served"):
        if status.HasField(word):
            held: renewal_pb2.CertificateStatus.Held = getattr(status, word)
            version = f"version {held.version}, " if held.version else ""
            until = f", until {_moment(held.not_after_time, now)}" if held.HasField("not_after_time") else ""
            facts.append((f"  {word}", f"{version}serial {held.serial_number}{until}"))
    if status.HasField("renew_time"):
        why = f" ({status.renew_reason})" if status.renew_reason else ""
        facts.append(("  renewal", f"{_moment(status.renew_time, now)}{why}"))
    if status.HasField("activate_time"):
        facts.append(("  activation", _moment(status.activate_time, now)))
    if status.last_error:
        count = status.request_failures or status.activation_failures
        times = f" ({count} times)" if count > 1 else ""
        again = f"; next try {_moment(status.next_attempt_time, now)}" if status.HasField("next_attempt_time") else ""
        facts.append(("  error", f"{status.last_error}{times}{again}"))
    return table_lines(facts)


def _renewal_lines(renewal: renewal_pb2.Renewal, now: datetime) -> list[str]:
    cause = _CAUSES.get(renewal.cause, "the broker")
    facts = [
        ("to be told", f"renew certificate {renewal.certificate_id} {_moment(renewal.renew_time, now)}"),
        ("  because of", cause + (f": {renewal.reason}" if renewal.reason else "")),
    ]
    if renewal.explanation_url:
        facts.append(("  explained at", renewal.explanation_url))
    return table_lines(facts)


def _link(host: renewal_pb2.Host, now: datetime) -> str:
    state = "CONTESTED, " if host.contested else ""
    if not host.connected and not host.HasField("last_seen_time"):
        return f"{state}never seen"
    since = time_of(host.connect_time if host.connected else host.last_seen_time)
    known = since is not None and (not host.connected or host.HasField("connect_time"))
    span = f" {span_text(now - since)}" if since is not None and known else ""
    return f"{state}{'up' if host.connected else 'down'}{span}"


def _at(host: renewal_pb2.Host, *, machine: bool) -> str:
    """At which broker it is, behind a link, by the machine alone where that tells it; an older broker doesn't say."""
    names = (host.broker_name, "" if machine else host.broker_address)
    return f" at {' '.join(filter(None, names))}" if host.broker_name else ""


def _broker(host: renewal_pb2.Host) -> str:
    return " ".join(filter(None, (host.broker_name or "of no name", host.broker_address, f"({host.broker_id})")))


def _identity(host: renewal_pb2.Host, now: datetime) -> str:
    serial = host.identity_serial_number or "unknown"
    if not host.HasField("identity_expire_time"):
        return serial
    return f"serial {serial}, until {_moment(host.identity_expire_time, now)}"


def _state(status: renewal_pb2.CertificateStatus) -> str:
    state = messages.STATES.get(status.state, f"state {status.state}")
    step = messages.STEPS.get(status.failed_step)
    return f"{state} ({step})" if step else state


def _health(status: renewal_pb2.CertificateStatus) -> str:
    if status.health == renewal_pb2.HEALTH_UNSPECIFIED:
        return "-"
    word = messages.HEALTHS.get(status.health)
    return f"health {status.health}" if word is None else word.value


def _is_well(status: renewal_pb2.CertificateStatus) -> bool:
    return status.health in (renewal_pb2.HEALTH_OK, renewal_pb2.HEALTH_UNSPECIFIED)


def _rank(status: renewal_pb2.CertificateStatus) -> int:
    """0 for the worst. A broker that says nothing of health says the state."""
    if status.health == renewal_pb2.HEALTH_UNSPECIFIED:
        word = HealthWord.FAILING if status.state in _ILL else HealthWord.OK
    else:
        word = messages.HEALTHS.get(status.health, HealthWord.MISMATCHED)  # a newer broker's is a warning
    return word.rank


def _by_health(certificates: Iterable[renewal_pb2.CertificateStatus]) -> list[renewal_pb2.CertificateStatus]:
    """The worst first, else as they come."""
    return sorted(certificates, key=_rank)


def _held(status: renewal_pb2.CertificateStatus) -> renewal_pb2.CertificateStatus.Held | None:
    if status.HasField("installed"):
        return status.installed
    return status.issued if status.HasField("issued") else None


def _served(status: renewal_pb2.CertificateStatus) -> str:
    if not status.HasField("served"):
        return "-"
    held = _held(status)
    same = held is not None and held.serial_number == status.served.serial_number
    return "yes" if same else f"ANOTHER ({status.served.serial_number[:8]}...)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time(timestamp: Timestamp) -> datetime:
    """The moment; the first there is where the broker's is none."""
    return time_of(timestamp) or datetime.min.replace(tzinfo=UTC)


def _moment(timestamp: Timestamp, now: datetime) -> str:
    moment = time_of(timestamp)
    return "no time" if moment is None else moment_text(moment, now)
