"""Trouble that is in the database before a broker looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import FleetStore
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts, Report

_HOUR = timedelta(hours=1)


async def plant_an_expired_certificate(store: FleetStore, host: str) -> None:
    """As the host had said it to the store's broker before it went away: `web` is served, and ended a minute ago."""
    now = datetime.now(UTC)
    held = HeldCertificate("2a", now - _HOUR, now - _HOUR / 60, "", 1, now - _HOUR)
    status = CertificateStatus("web", CertificateState.SERVING, "web", issued=held, installed=held, served=held)
    stream = HostStream(
        host, HostFacts("1.0"), "1f", now + _HOUR, "127.0.0.1", now - _HOUR, now - _HOUR, now - _HOUR / 2
    )
    await store.record_reports(host, "first", [Report(1, status)], names=["web"], stream=stream)
