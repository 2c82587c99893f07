"""What a broker says of its start and stop, in the audit log and in its own."""

from __future__ import annotations

import logging
import socket

from certplane import __version__
from certplane.broker.events import AuditEvent, AuditEventType, AuditTrail
from certplane.broker.prepared import Prepared
from certplane.broker.settings import BrokerSettings
from certplane.broker.trust_checks import trust_fields

_logger = logging.getLogger("certplane.broker")


def who(settings: BrokerSettings, broker_id: str) -> str:
    """The broker as an audit log that several share names it: machine, address, and the id of this start."""
    return f"broker {socket.gethostname()} {settings.server.address} ({broker_id})"


def start_events(prepared: Prepared, trail: AuditTrail, broker: str) -> list[AuditEvent]:
    """The start of a broker, `who`, and the policy that it begins with."""
    policy_hash = prepared.policy.current.hash
    trust = prepared.trust
    started = (
        f"{broker}, version {__version__}, configuration {prepared.settings.hash}, server certificate "
        f"{trust.server.serial_number}, agent CA bundle {trust.bundle.hash}"
    )
    return [
        trail.event(event_type, policy_hash=policy_hash, reason=reason)
        for event_type, reason in (
            (AuditEventType.BROKER_STARTED, started),
            (AuditEventType.POLICY_LOADED, f"loaded {prepared.policy.path}"),
        )
    ]


def stop_event(trail: AuditTrail, broker: str) -> AuditEvent:
    """The orderly stop of a broker, `who`."""
    return trail.event(AuditEventType.BROKER_STOPPED, reason=broker)


def log_started(prepared: Prepared, broker_id: str, port: int) -> None:
    """Log that calls are served, with what is in force."""
    settings = prepared.settings
    fields = {
        "version": __version__,
        "broker_id": broker_id,
        "address": str(settings.server.address),
        "port": port,
        "configuration_hash": settings.hash,
        "policy_hash": prepared.policy.current.hash,
        "issuers": ", ".join(f"{name} {ca.directory_url}" for name, ca in settings.cas.items()),
        "store": settings.store.driver.value,
        **trust_fields(prepared.trust),
    }
    _logger.info("serving", extra={"fields": fields})
