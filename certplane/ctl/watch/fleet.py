"""The fleet as a watch tells it, as small rows that are sorted and filtered at once: 10,000 hosts in some milliseconds.

A row has what a list shows, and what it is found by; all else of a host is asked for when somebody opens it. Pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.ctl.show.words import ending_one, health_word, labels_text, rank, state_text
from certplane.fleet_report import messages
from certplane.rpc.times import time_of
from certplane.runtime.health import HealthWord
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

HURT_RANK: Final = HealthWord.FOREIGN_SERVED.rank
"""Up to this rank somebody is hurt now."""
_NAME_OCTETS: Final = 255
_TEXT_OCTETS: Final = 500
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate of a host. `health` is the word as it is shown, `number` the message's; a time may be None."""

    name: str
    health: str
    number: pb.Health.ValueType
    rank: int
    cause: str
    reason: str
    remedy: str
    state: str
    profile: str
    not_after: datetime | None
    renew_time: datetime | None
    next_attempt: datetime | None
    since: datetime | None
    identity: bool


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host with its certificates, the worst first; `words` is what it is found by, in lower case."""

    name: str
    shown: str
    health: str
    rank: int
    connected: bool
    contested: bool
    since: datetime | None
    version: str
    broker: str
    blocked: str
    certificates: tuple[CertificateRow, ...]
    soonest: datetime
    renewal: datetime
    labels: str
    words: str

    @property
    def worst(self) -> CertificateRow | None:
        """The certificate that the row shows."""
        return self.certificates[0] if self.certificates else None


class Order(StrEnum):
    """Of a list of hosts; the values are shown."""

    WORST = "worst first"
    NAME = "by name"
    ENDS = "soonest end first"
    RENEWAL = "soonest renewal first"
    HEARD = "longest unheard first"


_KEYS: Final[Mapping[Order, Callable[[HostRow], Any]]] = {
    Order.WORST: lambda row: (row.rank, row.soonest, row.name),
    Order.NAME: lambda row: row.name,
    Order.ENDS: lambda row: (row.soonest, row.name),
    Order.RENEWAL: lambda row: (row.renewal, row.name),
    Order.HEARD: lambda row: (row.connected, row.since or _ALWAYS, row.name),
}


class Fleet:
    """All hosts that the watch has told of. `version` is another one after each change."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostRow] = {}
        self.complete = False
        """Whether a snapshot has been seen to its end."""
        self.version = 0
        self._told: set[str] = set()

    def apply(self, message: pb.WatchRenewalsResponse) -> None:
        """Take in one message."""
        self.version += 1
        match message.WhichOneof("event"):
            case "host":
                self.hosts[message.host.name] = host_row(message.host)
                self._told.add(message.host.name)
            case "certificate_change":
                self._change(message.certificate_change)
            case "host_removed":
                self.hosts.pop(message.host_removed, None)
            case "snapshot_end":
                self.complete = True
                self.hosts = {name: row for name, row in self.hosts.items() if name in self._told}
            case _:
                pass  # a newer broker's event

    def begin_again(self) -> None:
        """Another watch begins: what is known stays until its snapshot has ended, and then only what it told."""
        self._told.clear()

    def standing_still(self) -> "Fleet":
        """The fleet as it is now, whatever comes."""
        still = Fleet()
        still.hosts, still.complete, still.version = dict(self.hosts), self.complete, self.version
        return still

    def unknown(self, wanted: Iterable[str]) -> list[str]:
        """Which of these names and labels no host has."""
        known = {each for row in self.hosts.values() for each in (row.name, row.shown)}
        return [name for name in wanted if printable(name, _NAME_OCTETS) not in known]

    def _change(self, change: pb.WatchRenewalsResponse.CertificateChange) -> None:
        host = self.hosts.get(change.host) or host_row(pb.Host(name=change.host))
        self._told.add(change.host)
        name = printable(change.certificate.name, _NAME_OCTETS)
        kept = [each for each in host.certificates if each.name != name]
        if not change.removed:
            kept.append(certificate_row(change.certificate))
        self.hosts[change.host] = _with_certificates(host, kept)


def listed(hosts: Iterable[HostRow], order: Order, text: str, *, backwards: bool = False) -> list[HostRow]:
    """Hosts in an order, of those that have all words of `text`."""
    words = text.lower().split()
    found = [row for row in hosts if all(word in row.words for word in words)] if words else hosts
    return sorted(found, key=_KEYS[order], reverse=backwards)


def host_row(host: pb.Host) -> HostRow:
    """The row of a host as a message has it."""
    name, label = printable(host.name, _NAME_OCTETS), printable(host.label, _NAME_OCTETS)
    ended = host.disconnect_time if host.HasField("disconnect_time") else host.last_seen_time
    row = HostRow(
        name=name,
        shown=label or name,
        health="",
        rank=HealthWord.OK.rank,
        connected=host.connected,
        contested=host.contested,
        since=_moment(host.connect_time if host.connected else ended),
        version=printable(host.agent_version, 64),
        broker=printable(host.broker_name, _NAME_OCTETS),
        blocked=printable(host.blocked_reason, _TEXT_OCTETS),
        certificates=(),
        soonest=_NEVER,
        renewal=_NEVER,
        labels=printable(labels_text(host), _TEXT_OCTETS),
        words="",
    )
    own = messages.HEALTHS.get(host.health)
    return _with_certificates(row, map(certificate_row, host.certificates), own)


def certificate_row(status: pb.CertificateStatus) -> CertificateRow:
    """The row of a certificate as a message has it."""
    end = ending_one(status)
    return CertificateRow(
        name=printable(status.name, _NAME_OCTETS),
        health=health_word(status.health),
        number=status.health,
        rank=rank(status),
        cause=printable(status.health_cause, _TEXT_OCTETS),
        reason=printable(status.health_reason or status.last_error, _TEXT_OCTETS),
        remedy=printable(status.health_remedy, _TEXT_OCTETS),
        state=state_text(status),
        profile=printable(status.profile, _NAME_OCTETS),
        not_after=None if end is None else _moment(end.not_after_time),
        renew_time=_moment(status.renew_time),
        next_attempt=_moment(status.next_attempt_time),
        since=_moment(status.health_since_time),
        identity=status.name == "identity",
    )


def _with_certificates(host: HostRow, certificates: Iterable[CertificateRow], own: HealthWord | None = None) -> HostRow:
    """The host with these, and what follows of them.

    `own` is the host's health by the broker's message. Of one whose certificate changed, it is what the certificates'
    make it: where its silence makes it another one, the broker sends the host.
    """
    ordered = tuple(sorted(certificates, key=lambda row: (row.rank, row.identity, row.not_after or _NEVER, row.name)))
    word, worst = ("-", HealthWord.OK.rank) if own is None else (own.value, own.rank)
    if ordered and ordered[0].rank <= worst:
        word, worst = ordered[0].health, ordered[0].rank
    if not ordered and own is HealthWord.OK:
        word = "-"  # it has no certificate yet, and nobody can call that well
    words = [
        host.name,
        host.shown,
        host.labels,
        host.version,
        host.blocked,
        word,
        host.broker,
        "up" if host.connected else "down",
    ]
    for each in ordered:
        words += [each.name, each.health, each.cause, each.state, each.profile]
    return HostRow(
        name=host.name,
        shown=host.shown,
        health=word,
        rank=worst,
        connected=host.connected,
        contested=host.contested,
        since=host.since,
        version=host.version,
        broker=host.broker,
        blocked=host.blocked,
        certificates=ordered,
        soonest=_soonest(each.not_after for each in ordered),
        renewal=_soonest(each.renew_time for each in ordered),
        labels=host.labels,
        words=" ".join(words).lower(),
    )


def _moment(stamp: Timestamp) -> datetime | None:
    return time_of(stamp) if stamp.seconds else None


def _soonest(moments: Iterable[datetime | None]) -> datetime:
    return min((each for each in moments if each is not None), default=_NEVER)


def counts(hosts: Iterable[HostRow]) -> Sequence[tuple[pb.Health.ValueType, int]]:
    """How many certificates have which health, as the message's number, the worst first."""
    found: dict[tuple[int, pb.Health.ValueType], int] = {}
    for host in hosts:
        for each in host.certificates:
            key = each.rank, each.number
            found[key] = found.get(key, 0) + 1
    return [(health, number) for (_, health), number in sorted(found.items())]
