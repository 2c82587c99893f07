"""Hosts and certificates as rows, the worst first, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from certplane.ctl.show.words import (
    at_broker,
    by_health,
    ending_one,
    health_style,
    health_word,
    held,
    is_well,
    labels_text,
    link_style,
    link_text,
    moment,
    off,
    rank,
    served_text,
    state_text,
)
from certplane.fleet_report import messages
from certplane.runtime.columns import Column
from certplane.runtime.health import HealthWord
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import fleet_pb2, renewal_pb2

IDENTITY: Final = "identity"
"""What a host's own certificate is called among its others."""


@dataclass(frozen=True, slots=True)
class Row:
    """A certificate beside its host; `status` is None of a host that has none."""

    host: renewal_pb2.Host
    status: renewal_pb2.CertificateStatus | None
    first: bool
    """Whether it is the host's first: the others don't repeat what is the host's."""
    well: int = 0
    """How many others the host has that are well, and aren't shown."""


def urgency(host: renewal_pb2.Host) -> tuple[int, bool]:
    """For sorting, the lowest first: how bad the worst of its certificates is; then whether it is there and itself."""
    worst = min(map(rank, host.certificates), default=HealthWord.OK.rank)
    return worst, host.connected and not host.contested


def host_rows(hosts: Iterable[renewal_pb2.Host]) -> list[Row]:
    """A row for each host, and one more for each further certificate of it that isn't well."""
    rows = []
    for host in hosts:
        certificates = by_health(host.certificates)
        own = [each for each in certificates if each.name != IDENTITY]
        ill = [each for each in certificates if not is_well(each)]
        shown: list[renewal_pb2.CertificateStatus | None] = [*(ill or own[:1] or certificates[:1])] or [None]
        total = max(host.certificate_count, len(certificates))
        for number, status in enumerate(shown):
            rows.append(Row(host, status, not number, total - len(shown) if not number else 0))
    return rows


def host_columns(hosts: Sequence[renewal_pb2.Host], now: datetime) -> list[Column[Row]]:
    """The columns of `fleet`; where hosts are at several brokers, each says at which it is."""
    brokers = {host.broker_id: host.broker_name for host in hosts if host.broker_id}
    machines = len(set(brokers.values())) == len(brokers)

    def link(row: Row) -> str:
        at = at_broker(row.host, machine=machines) if len(brokers) > 1 else ""
        return link_text(row.host, now) + at if row.first else " "

    return [
        Column("HOST", lambda row: _name(row.host) if row.first else " ", 0, least=20),
        Column("HEALTH", _health, 0, style=_health_style),
        Column("CERTIFICATE", _certificate, 2, least=8),
        Column(
            "EXPIRES", lambda row: _until(row.status, now), 1, wide_text=lambda row: _until(row.status, now, wide=True)
        ),
        Column("CAUSE", _cause, 3, least=16, wide_text=_reason),
        Column("LINK", link, 4, style=lambda row: link_style(row.host)),
        Column(
            "RENEWS", lambda row: _renews(row.status, now), 5, wide_text=lambda row: _renews(row.status, now, wide=True)
        ),
        Column("STATE", lambda row: "" if row.status is None else state_text(row.status), 6),
        Column("SERVED", lambda row: "" if row.status is None else served_text(row.status), 7),
        Column("AGENT", lambda row: row.host.agent_version if row.first else " ", 8),
        Column("NAMES", lambda row: "" if row.status is None else " ".join(row.status.dns_names), None),
        Column("LABELS", lambda row: labels_text(row.host) if row.first else " ", None),
        Column("IDENTITY", lambda row: row.host.name if row.first else " ", None),
    ]


def certificate_columns(now: datetime) -> list[Column[fleet_pb2.FleetCertificate]]:
    """The columns of `certs`."""
    return [
        Column("HOST", lambda each: each.label or each.host, 0, least=20),
        Column("CERTIFICATE", lambda each: each.certificate.name, 0, least=8),
        Column(
            "HEALTH",
            lambda each: health_word(each.certificate.health),
            1,
            style=lambda each: health_style(each.certificate.health),
        ),
        Column(
            "EXPIRES",
            lambda each: _until(each.certificate, now),
            2,
            wide_text=lambda each: _until(each.certificate, now, wide=True),
        ),
        Column(
            "RENEWS",
            lambda each: _renews(each.certificate, now),
            3,
            wide_text=lambda each: _renews(each.certificate, now, wide=True),
        ),
        Column("CAUSE", lambda each: cause_text(each.certificate), 5, least=16),
        Column("NAMES", lambda each: " ".join(each.certificate.dns_names), 4, least=16),
        Column("PROFILE", lambda each: each.certificate.profile, 6),
        Column("ISSUER", lambda each: each.issuer, 7),
        Column("STATE", lambda each: state_text(each.certificate), None),
        Column("SERVED", lambda each: served_text(each.certificate), None),
        Column("SERIAL", lambda each: _held(each.certificate).serial_number, None),
        Column("ID", lambda each: _held(each.certificate).certificate_id, None),
        Column("KEY", lambda each: each.public_key_sha256, None),
        Column("LABELS", labels_text, None),
    ]


def certificate_name(each: fleet_pb2.FleetCertificate) -> str:
    """What the broker calls it, for the next command; else whose it is."""
    return _held(each.certificate).certificate_id or f"{each.host}/{each.certificate.name}"


def counts_of(hosts: Iterable[renewal_pb2.Host]) -> list[fleet_pb2.HealthCount]:
    """Counts by health, of a broker that doesn't count."""
    found = Counter(each.health for host in hosts for each in host.certificates)
    return [fleet_pb2.HealthCount(health=health, certificate_count=found[health]) for health in found]


def totals(counts: Iterable[fleet_pb2.HealthCount]) -> list[tuple[str, Style]]:
    """How many certificates of each health there are, the worst first."""
    return [
        (
            f"{each.certificate_count} {health_word(each.health).replace('-', 'of unknown health')}",
            health_style(each.health),
        )
        for each in sorted(counts, key=lambda each: _health_rank(each.health))
        if each.certificate_count
    ]


def hosts_total(hosts: int, connected: int, *, services: bool) -> str:
    """How many, and how many are there."""
    what = counted(hosts, "host or service", "hosts and services") if services else counted(hosts, "host")
    return f"{what}, {connected} connected"


def cause_text(status: renewal_pb2.CertificateStatus) -> str:
    """What causes its health, in short; an older broker says it at length."""
    return status.health_cause or status.health_reason


def _name(host: renewal_pb2.Host) -> str:
    return host.label or host.name


def _health(row: Row) -> str:
    return health_word(_judged(row))


def _health_style(row: Row) -> Style:
    return health_style(_judged(row))


def _judged(row: Row) -> int:
    """The health that a row shows: none of a host that has no certificate yet, which nobody can call well."""
    if row.status is not None:
        return row.status.health
    nothing = row.host.health == renewal_pb2.HEALTH_OK and not row.host.certificate_count
    return renewal_pb2.HEALTH_UNSPECIFIED if nothing else row.host.health


def _certificate(row: Row) -> str:
    if row.status is None:
        return ""
    return row.status.name + (f" (+{row.well})" if row.well else "")


def _cause(row: Row) -> str:
    if row.first and row.host.blocked_reason:
        return row.host.blocked_reason
    return "" if row.status is None else cause_text(row.status)


def _reason(row: Row) -> str:
    reason = "" if row.status is None else row.status.health_reason
    return reason or _cause(row)


def _until(status: renewal_pb2.CertificateStatus | None, now: datetime, *, wide: bool = False) -> str:
    end = None if status is None else ending_one(status)
    return "" if end is None else (moment if wide else off)(end.not_after_time, now)


def _renews(status: renewal_pb2.CertificateStatus | None, now: datetime, *, wide: bool = False) -> str:
    if status is None or not status.HasField("renew_time"):
        return ""
    return (moment if wide else off)(status.renew_time, now)


def _held(status: renewal_pb2.CertificateStatus) -> renewal_pb2.CertificateStatus.Held:
    return held(status) or renewal_pb2.CertificateStatus.Held()


def _health_rank(health: int) -> int:
    return messages.HEALTHS.get(health, HealthWord.MISMATCHED).rank
