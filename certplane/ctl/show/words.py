"""Health, state, link and times as words, the same in each table; a colour repeats how bad a word is."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.errors import OperationError
from certplane.fleet_report import messages
from certplane.rpc.times import time_of
from certplane.runtime.health import Health, HealthWord, Severity
from certplane.runtime.tables import moment_text, span_text
from certplane.runtime.terminal import Style
from certplane.v1 import fleet_pb2, renewal_pb2

_Status = renewal_pb2.CertificateStatus

STATES: Final = {word.value: _Status.State.ValueType(number) for number, word in messages.STATES.items()}
"""The states as people write them."""
HEALTHS: Final = {word.lower(): renewal_pb2.Health.ValueType(number) for number, word in messages.HEALTHS.items()}
"""The healths as people write them."""
ACTORS: Final = {
    renewal_pb2.HEALTH_ACTOR_NOBODY: "it heals by itself",
    renewal_pb2.HEALTH_ACTOR_HOST: "whoever keeps the host",
    renewal_pb2.HEALTH_ACTOR_OPERATOR: "whoever keeps the broker and its policy",
    renewal_pb2.HEALTH_ACTOR_DNS: "whoever keeps the DNS of the names",
    renewal_pb2.HEALTH_ACTOR_ISSUER: "the CA",
}

_STYLES: Final = {Severity.CRITICAL: Style.BAD, Severity.WARNING: Style.WARNING, Severity.OK: Style.GOOD}
_ILL: Final = (_Status.STATE_FAILED, _Status.STATE_DEGRADED)


def health_word(health: int) -> str:
    """As it is shown; a number for one that a newer broker invented, `-` for one that wasn't said."""
    if health == renewal_pb2.HEALTH_UNSPECIFIED:
        return "-"
    word = messages.HEALTHS.get(health)
    return f"health {health}" if word is None else word.value


def health_style(health: int) -> Style:
    """Its colour."""
    if health == renewal_pb2.HEALTH_UNSPECIFIED:
        return Style.PLAIN
    word = messages.HEALTHS.get(health)
    return Style.WARNING if word is None else _STYLES[Health(word).severity]


def is_critical(health: int) -> bool:
    """Whether it needs a person now."""
    return health_style(health) is Style.BAD


def is_well(status: renewal_pb2.CertificateStatus) -> bool:
    """Whether nothing is known against it."""
    return status.health in (renewal_pb2.HEALTH_OK, renewal_pb2.HEALTH_UNSPECIFIED)


def rank(status: renewal_pb2.CertificateStatus) -> int:
    """0 for the worst. A broker that says nothing of health says the state."""
    if status.health == renewal_pb2.HEALTH_UNSPECIFIED:
        word = HealthWord.FAILING if status.state in _ILL else HealthWord.OK
    else:
        word = messages.HEALTHS.get(status.health, HealthWord.MISMATCHED)  # a newer broker's is a warning
    return word.rank


def by_health(certificates: Iterable[renewal_pb2.CertificateStatus]) -> list[renewal_pb2.CertificateStatus]:
    """The worst first, else as they come."""
    return sorted(certificates, key=rank)


def alarms(certificates: Iterable[renewal_pb2.CertificateStatus]) -> bool:
    """Whether one of them needs a person now.

    Raises:
        OperationError: the broker doesn't say.
    """
    healths = [each.health for each in certificates]
    if renewal_pb2.HEALTH_UNSPECIFIED in healths:
        remedy = "upgrade it, or go by the states"
        raise OperationError("the broker reports no health: it is older than certplanectl", remedy=remedy)
    return any(map(is_critical, healths))


def state_text(status: renewal_pb2.CertificateStatus) -> str:
    """Where it is, and the step that failed."""
    state = messages.STATES.get(status.state, f"state {status.state}")
    step = messages.STEPS.get(status.failed_step)
    return f"{state} ({step})" if step else state


def held(status: renewal_pb2.CertificateStatus) -> renewal_pb2.CertificateStatus.Held | None:
    """What is in use, or at least on the disk."""
    if status.HasField("installed"):
        return status.installed
    return status.issued if status.HasField("issued") else None


def held_ones(status: renewal_pb2.CertificateStatus) -> list[tuple[str, renewal_pb2.CertificateStatus.Held]]:
    """The certificates that there are of it, each with what it is."""
    found = [
        ("issued", status.issued, status.HasField("issued")),
        ("installed", status.installed, status.HasField("installed")),
        ("served", status.served, status.HasField("served")),
    ]
    return [(word, each) for word, each, is_there in found if is_there]


def ending_one(status: renewal_pb2.CertificateStatus) -> renewal_pb2.CertificateStatus.Held | None:
    """Whose end is shown: what is in use, but of an expired one whichever of that and what is served ends first."""
    found = held(status)
    if status.health != renewal_pb2.HEALTH_EXPIRED or not status.served.HasField("not_after_time"):
        return found
    if found is None or status.served.not_after_time.seconds < found.not_after_time.seconds:
        return status.served
    return found


def served_text(status: renewal_pb2.CertificateStatus) -> str:
    """Whether the service serves the newest certificate; `older` if what is in place isn't that."""
    if not status.HasField("served"):
        return "-"
    served = status.served.serial_number
    newest = status.issued if status.HasField("issued") else status.installed
    if served == newest.serial_number:
        return "yes"
    return "older" if served == status.installed.serial_number else f"ANOTHER ({served[:8]}...)"


def labels_text(host: renewal_pb2.Host | fleet_pb2.FleetCertificate) -> str:
    """Its labels in the policy, as they are picked by: `dc=fra1 ring=canary`."""
    return " ".join(f"{key}={value}" for key, value in sorted(host.labels.items()))


def link_text(host: renewal_pb2.Host, now: datetime) -> str:
    """Whether it is there, and since when: where its stream has ended, since that end.

    A service is there while it watches its certificates; of one that never did nothing is said.
    """
    service = host.kind == renewal_pb2.HOST_KIND_SERVICE
    state = "service, " if service else "CONTESTED, " if host.contested else ""
    if not host.connected and not host.HasField("last_seen_time"):
        return "service" if service else f"{state}never seen"
    if host.connected:
        stamp = host.connect_time if host.HasField("connect_time") else None
    else:
        stamp = host.disconnect_time if host.HasField("disconnect_time") else host.last_seen_time
    since = None if stamp is None else time_of(stamp)
    span = f" {span_text(now - since)}" if since is not None else ""
    return f"{state}{'up' if host.connected else 'down'}{span}"


def link_style(host: renewal_pb2.Host) -> Style:
    """Its colour."""
    return Style.BAD if host.contested else Style.PLAIN if host.connected else Style.DIM


def at_broker(host: renewal_pb2.Host, *, machine: bool) -> str:
    """At which broker it is, behind a link, by the machine alone where that tells it; an older broker doesn't say."""
    names = (host.broker_name, "" if machine else host.broker_address)
    return f" at {' '.join(filter(None, names))}" if host.broker_name else ""


def moment(timestamp: Timestamp, now: datetime) -> str:
    """A time, and how far off it is."""
    time = time_of(timestamp)
    return "no time" if time is None else moment_text(time, now)


def off(timestamp: Timestamp, now: datetime) -> str:
    """How far off a time is, for a narrow column."""
    time = time_of(timestamp)
    if time is None:
        return "no time"
    span = time - now
    return f"in {span_text(span)}" if span > timedelta() else f"{span_text(-span)} ago"


def clock_text(timestamp: Timestamp) -> str:
    """A time to the second, in UTC."""
    time = time_of(timestamp)
    return "no time" if time is None else f"{time:%Y-%m-%d %H:%M:%S}Z"


def time_or_first(timestamp: Timestamp) -> datetime:
    """The moment; the first there is where the broker's is none."""
    return time_of(timestamp) or datetime.min.replace(tzinfo=UTC)
