"""The summary of the fleet as a message under the size of one, and certificates with their holders."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.index import IndexedHost
from certplane.broker.fleet.summaries import FleetSummary, IssuerTrouble, ShownCause
from certplane.broker.fleet.summary import ENDINGS, MOST_VERSIONS, missing_reason, soonest_end
from certplane.broker.fleet.view import CertificateView
from certplane.broker.services.convert import invalid_request
from certplane.broker.services.fleet_convert import MESSAGE_ROOM, fleet_certificate
from certplane.fleet_report.messages import ACTOR_NUMBERS, HEALTH_NUMBERS
from certplane.rpc.times import put_time, span_of
from certplane.runtime.health import HealthWord
from certplane.runtime.text import printable
from certplane.v1 import fleet_pb2

_Response = fleet_pb2.SummarizeFleetResponse

_PERIOD: Final = timedelta(hours=24)
_LONGEST_PERIOD: Final = timedelta(days=7)
_MOST_TEXT: Final = 300
"""Characters of a text: six lists of twenty have to fit into a message."""
_LONGEST_ERROR: Final = 200
_MOST_NAMES: Final = 5
_LISTS: Final = ("hurt", "next", "causes", "changes", "missing")
"""Whose lengths the counts beside them don't tell."""


def period_of(duration: Duration | None) -> timedelta:
    """The period of a summary.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, none or over a week.
    """
    if duration is None:
        return _PERIOD
    period = span_of(duration)
    if not period or period > _LONGEST_PERIOD:
        raise invalid_request("period", "must be more than nothing and at most 7 days")
    return period


def summary_message(summary: FleetSummary) -> _Response:
    """The whole of it: texts are cut, so that it stays under the size of a message."""
    sums = summary.sums
    message = _Response(
        host_count=sums.host_count,
        connected_host_count=sums.connected_host_count,
        service_count=sums.service_count,
        connected_service_count=sums.connected_service_count,
        health_counts=(
            fleet_pb2.HealthCount(health=HEALTH_NUMBERS[word], certificate_count=sums.healths[word])
            for word in HealthWord
            if sums.healths[word]
        ),
        hurt=map(brief_certificate, summary.hurt),
        hurt_count=sums.hurt_count,
        next=map(brief_certificate, summary.next),
        next_count=sums.next_count,
        next_wont_heal_count=sums.next_wont_heal_count,
        causes=map(_cause, summary.causes),
        cause_count=summary.cause_count,
        changes=map(_change, summary.changes),
        missing=map(_missing, sums.missing),
        missing_count=sums.missing_count,
        endings=(_ending(within, sums.endings[within]) for within in ENDINGS),
        agent_versions=(
            _Response.AgentVersion(version=version, host_count=count)
            for version, count in sums.versions.most_common(MOST_VERSIONS)
        ),
        issuers=map(_issuer, summary.issuers),
        open_order_count=summary.open_orders,
        troubled_order_count=summary.troubled_orders,
    )
    put_time(summary.time, message.summary_time)
    _fit(message)
    return message


def _fit(message: _Response) -> None:
    """Cut the longest list by its last ones until the message has the size that one may have."""
    while message.ByteSize() > MESSAGE_ROOM:
        longest = max(_LISTS, key=lambda name: sum(each.ByteSize() for each in getattr(message, name)))
        del getattr(message, longest)[-1]


def brief_certificate(view: CertificateView) -> fleet_pb2.FleetCertificate:
    """The same, cut to what a summary shows: the first names, and the beginnings of texts."""
    message = fleet_certificate(view)
    certificate = message.certificate
    del certificate.dns_names[_MOST_NAMES:]
    certificate.last_error = certificate.last_error[:_LONGEST_ERROR]
    certificate.renew_reason = ""
    certificate.health_reason = certificate.health_reason[:_MOST_TEXT]
    certificate.health_remedy = certificate.health_remedy[:_MOST_TEXT]
    return message


def _cause(shown: ShownCause) -> _Response.Cause:
    group = shown.group
    message = _Response.Cause(
        health=HEALTH_NUMBERS[group.health],
        cause=group.cause,
        actor=ACTOR_NUMBERS[group.actor],
        certificate_count=group.certificate_count,
        host_count=group.host_count,
        hosts=group.hosts,
    )
    if shown.example is not None:
        message.reason = printable(shown.example.health.text, _MOST_TEXT)
        message.remedy = printable(shown.example.health.remedy, _MOST_TEXT)
    _put(group.since, message, "since_time")
    _put(group.next_attempt_time, message, "next_attempt_time")
    return message


def _change(event: AuditEvent) -> _Response.Change:
    message = _Response.Change(
        event_type=event.event_type.value,
        text=printable(_said(event), _MOST_TEXT),
        identity=event.identity,
        count=event.count or 1,
    )
    put_time(event.timestamp, message.event_time)
    return message


def _said(event: AuditEvent) -> str:
    """What happened, in the event's own words; of a revocation whose names it is about."""
    names = " ".join(event.csr_dns_names[:_MOST_NAMES])
    return "; ".join(filter(None, (event.reason or event.reason_code, names)))


def _missing(host: IndexedHost) -> _Response.Missing:
    message = _Response.Missing(host=host.name, reason=printable(missing_reason(host), _MOST_TEXT))
    _put(host.last_seen_time, message, "last_seen_time")
    _put(soonest_end(host), message, "soonest_not_after_time")
    return message


def _ending(within: timedelta, count: int) -> _Response.Ending:
    message = _Response.Ending(certificate_count=count)
    message.within.FromTimedelta(within)
    return message


def _issuer(trouble: IssuerTrouble) -> _Response.IssuerState:
    message = _Response.IssuerState(
        issuer=trouble.issuer, usable=trouble.refusal is None, waiting_order_count=trouble.waiting_count
    )
    if trouble.refusal is not None:
        message.reason = printable(trouble.refusal.message, _MOST_TEXT)
    _put(trouble.until, message, "until_time")
    _put(trouble.waiting_until, message, "waiting_until_time")
    return message


def _put(
    moment: datetime | None, message: _Response.Cause | _Response.Missing | _Response.IssuerState, field: str
) -> None:
    if moment is not None:
        put_time(moment, getattr(message, field))
