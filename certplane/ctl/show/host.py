"""One host with all that is known of it, as names and values."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from certplane.ctl.show.words import (
    ACTORS,
    by_health,
    health_word,
    held,
    held_ones,
    labels_text,
    link_text,
    moment,
    state_text,
)
from certplane.rpc.times import signed_span_of, span_of
from certplane.runtime.tables import span_text
from certplane.runtime.text import counted
from certplane.v1 import renewal_pb2

Facts = list[tuple[str, str]]
"""Names with values, in the order in which they are shown; empty values are left out."""

_CAUSES: Final = {
    renewal_pb2.Renewal.CAUSE_LIFETIME: "its lifetime",
    renewal_pb2.Renewal.CAUSE_ISSUER: "the CA",
    renewal_pb2.Renewal.CAUSE_OPERATOR: "an operator",
    renewal_pb2.Renewal.CAUSE_REVOKED: "its revocation",
}
_SKEW_SHOWN: Final = timedelta(seconds=5)


def host_facts(host: renewal_pb2.Host, now: datetime) -> Facts:
    """The host itself."""
    skew = (signed_span_of(host.clock_skew) if host.HasField("clock_skew") else None) or timedelta()
    side = "ahead of" if skew > timedelta() else "behind"
    displaced = f"{counted(host.displaced_streams, 'stream')}: is the identity in use on two machines?"
    contested = "two holders of this identity; settle it with `certplane-broker identity allow`"
    error = host.directive_error.message if host.HasField("directive_error") else ""
    total = max(host.certificate_count, len(host.certificates))
    return [
        ("host", host.name if not host.label else f"{host.name} ({host.label} in the policy)"),
        ("labels", labels_text(host)),
        ("link", link_text(host, now) + (f" from {host.source_ip}" if host.source_ip else "")),
        ("broker", _broker(host) if host.broker_id else ""),
        ("client" if host.kind == renewal_pb2.HOST_KIND_SERVICE else "agent", _agent(host)),
        ("watches", str(host.watch_count) if host.watch_count else ""),
        ("identity", _identity(host, now)),
        ("blocked", host.blocked_reason),
        ("clock", f"{span_text(abs(skew))} {side} the broker's" if abs(skew) >= _SKEW_SHOWN else ""),
        ("displaced", displaced if host.displaced_streams else ""),
        ("contested", contested if host.contested else ""),
        ("refused", f"the last directive: {error}" if error else ""),
        ("can", " ".join(host.features)),
        ("trusts", " ".join(host.broker_roots_sha256)),
        ("certificates", str(total) if total > len(host.certificates) else ""),
    ]


def certificate_facts(status: renewal_pb2.CertificateStatus, now: datetime) -> Facts:
    """One certificate; the first fact is its name."""
    word = health_word(status.health)
    facts: Facts = [
        ("certificate", status.name + (f" (profile {status.profile})" if status.profile else "")),
        ("  health", f"{word}: {status.health_reason}" if status.health_reason else word),
        ("  cause", status.health_cause),
        ("  since", moment(status.health_since_time, now) if status.HasField("health_since_time") else ""),
        ("  remedy", status.health_remedy),
        ("  by", ACTORS.get(status.health_actor, "") if status.health_remedy else ""),
        ("  state", f"{state_text(status)}, since {moment(status.update_time, now)}"),
        ("  names", " ".join(status.dns_names)),
    ]
    facts += [(f"  {word}", _held(found, now)) for word, found in held_ones(status)]
    in_use = held(status)
    if in_use is not None:
        facts.append(("  id", in_use.certificate_id))
    if status.HasField("renew_time"):
        why = f" ({status.renew_reason})" if status.renew_reason else ""
        facts.append(("  renewal", f"{moment(status.renew_time, now)}{why}"))
    if status.HasField("activate_time"):
        at = moment(status.activate_time, now)
        rollout = status.held_by_rollout_id
        facts.append(("  activation", f"as rollout {rollout} says, at the latest {at}" if rollout else at))
    if status.last_error:
        count = status.request_failures or status.activation_failures
        times = f" ({count} times)" if count > 1 else ""
        again = f"; next try {moment(status.next_attempt_time, now)}" if status.HasField("next_attempt_time") else ""
        facts.append(("  error", f"{status.last_error}{times}{again}"))
    return facts


def renewal_facts(renewal: renewal_pb2.Renewal, now: datetime) -> Facts:
    """What the host is to be told, as soon as it comes."""
    what = "the identity" if renewal.identity else f"certificate {renewal.certificate_id}"
    cause = _CAUSES.get(renewal.cause, "the broker")
    return [
        ("to be told", f"renew {what} {moment(renewal.renew_time, now)}"),
        ("  because of", cause + (f": {renewal.reason}" if renewal.reason else "")),
        ("  asked as", renewal.renewal_request_id),
        ("  of rollout", renewal.rollout_id),
        ("  explained at", renewal.explanation_url),
    ]


def sections(host: renewal_pb2.Host, now: datetime) -> list[tuple[Facts, int]]:
    """All of a host: itself, its certificates, the worst first, what it is to be told; each with its health."""
    return [
        (host_facts(host, now), renewal_pb2.HEALTH_UNSPECIFIED),
        *((certificate_facts(each, now), each.health) for each in by_health(host.certificates)),
        *((renewal_facts(each, now), renewal_pb2.HEALTH_UNSPECIFIED) for each in host.pending_renewals),
    ]


def _held(found: renewal_pb2.CertificateStatus.Held, now: datetime) -> str:
    version = f"version {found.version}, " if found.version else ""
    until = f", until {moment(found.not_after_time, now)}" if found.HasField("not_after_time") else ""
    return f"{version}serial {found.serial_number}{until}"


def _broker(host: renewal_pb2.Host) -> str:
    return " ".join(filter(None, (host.broker_name or "of no name", host.broker_address, f"({host.broker_id})")))


def _agent(host: renewal_pb2.Host) -> str:
    if host.agent_mode != renewal_pb2.AGENT_MODE_TIMER:
        return host.agent_version or "unknown"
    every = span_of(host.run_interval) if host.HasField("run_interval") else None
    return (
        f"{host.agent_version or 'unknown'}, started by a timer{'' if every is None else f' each {span_text(every)}'}"
    )


def _identity(host: renewal_pb2.Host, now: datetime) -> str:
    serial = host.identity_serial_number or "unknown"
    if not host.HasField("identity_expire_time"):
        return serial
    return f"serial {serial}, until {moment(host.identity_expire_time, now)}"
