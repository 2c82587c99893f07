"""What the proof of the audit log costs: bytes of an event in the database, and events per second with and without it.

The events are those of a certificate from its request to its use, with all that real ones have. Without the chain, rows
have no number and no hash; all else, also their compact form, is the same. Both are measured in turn in each round, and
by the time of processors: the disk's and other programs' differ by more than what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from unittest import mock

from benchmarks.audit import store_events
from benchmarks.result import Figure, figure
from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditTrail
from certplane.broker.proof.chain import Head
from certplane.broker.store import audit_chain, open_stores
from certplane.broker.store.audit_records import EventRow
from certplane.runtime.clock import SystemClock

_LIVES: Final = 3_000
_GROUP: Final = 64


class _Unchained(audit_chain.AuditChain):
    def link(self, rows: Sequence[EventRow]) -> list[object]:
        values: list[object] = []
        for event_id, create_time, record, body, kind, _ in rows:
            values += (event_id, create_time, record, None, None, None, body, kind)
        return values


@contextlib.contextmanager
def _without_chain() -> Iterator[None]:
    with (
        mock.patch.object(audit_chain.AuditChain, "link", _Unchained.link),
        mock.patch.object(audit_chain.AuditChain, "begin", _begin),
    ):
        yield


def _begin(chain: audit_chain.AuditChain, _session: object) -> None:
    chain.head = Head(0, 0, b"")


def life(number: int, trail: AuditTrail) -> list[AuditEvent]:
    """The events of one certificate: asked for, allowed, issued, handed out, in use."""
    now = datetime.now(UTC)

    def digest(what: str) -> str:
        return hashlib.sha256(f"{what} {number}".encode()).hexdigest()

    names = (f"shop{number:06}.example.org", f"www.shop{number:06}.example.org")
    request = trail.carrying(
        request_id=str(uuid.uuid4()), identity=f"host{number:06}.example.org", profile_name=f"shop{number % 100:02}",
        profile_hash=digest("profile"), policy_hash=digest("policy"), csr_sha256=digest("csr"),
        csr_public_key_sha256=digest("key"), csr_dns_names=names, order_id=str(uuid.uuid4()),
    )  # fmt: skip
    call = request.carrying(
        source_ip=f"192.0.2.{number % 250}", user_agent="certplane-agent/0.1.0 grpc-python-asyncio/1.85.1",
        expected_dns_names=names,
    )  # fmt: skip
    issuer = {"issuer_name": "letsencrypt", "issuer_directory": "https://acme-v02.api.letsencrypt.org/directory"}
    made = {
        "certificate_id": str(uuid.uuid4()),
        "cert_serial_number": digest("serial")[:36],
        "cert_not_before": now.replace(microsecond=0),
        "cert_not_after": now.replace(microsecond=0) + timedelta(days=90),
        "acme_order_url": f"https://acme-v02.api.letsencrypt.org/acme/order/1234567/{number + 10**9}",
    }
    return [
        call.event(AuditEventType.CERTIFICATE_REQUEST_RECEIVED),
        call.event(
            AuditEventType.CERTIFICATE_AUTHORIZED,
            decision=AuditDecision.ALLOW,
            cache_result="miss",
            cause="renewal",
            replaces_certificate_id=str(uuid.uuid4()),
            **issuer,
        ),
        request.event(
            AuditEventType.CERTIFICATE_ISSUED, decision=AuditDecision.ISSUE, cause="renewal", **issuer, **made
        ),
        call.event(
            AuditEventType.CERTIFICATE_DELIVERED, decision=AuditDecision.ALLOW, issuer_name="letsencrypt", **made
        ),
        trail.event(
            AuditEventType.RENEWAL_REPORTED,
            identity=f"host{number:06}.example.org",
            profile_name=f"shop{number % 100:02}",
            cert_serial_number=made["cert_serial_number"],
            cert_not_after=made["cert_not_after"],
            source_ip=f"192.0.2.{number % 250}",
            reason="version 7 is in use; nginx was reloaded",
        ),
    ]


async def _stored_bytes(folder: Path) -> tuple[float, float]:
    """Bytes of an event in the database with its indexes, and of its text."""
    path = folder / "sizes.db"
    trail = AuditTrail(SystemClock())
    count = size = 0
    async with open_stores(path=path, audit=SpillFallback("fail_closed", folder / "spill")) as stores:
        empty = path.stat().st_size
        for start in range(0, _LIVES, _GROUP):
            events = [event for number in range(start, start + _GROUP) for event in life(number, trail)]
            count += len(events)
            size += sum(len(event.encode()) for event in events)
            await stores.audit.append(events)
    grown = path.stat().st_size - empty
    for file in folder.glob(f"{path.name}*"):
        file.unlink()
    return grown / count, size / count


def measure(folder: Path, *, rounds: int, seconds: float) -> list[Figure]:
    """The goals' figures."""
    calls = int(10_000 * seconds)
    costs = []
    for _ in range(rounds):
        with _without_chain():
            plain = asyncio.run(store_events(folder, calls, 1))
        chained = asyncio.run(store_events(folder, calls, 1))
        with _without_chain():
            again = asyncio.run(store_events(folder, calls, 1))
        costs.append(100 * (2 * chained.processor_us / (plain.processor_us + again.processor_us) - 1))
    stored, text = asyncio.run(_stored_bytes(folder))
    return [
        figure("cost of the hash chain, processor time of an audit event, %", costs, "<= 5"),
        figure(f"bytes of an audit event in the database; {text:.0f} as text", [stored], "<= 800"),
    ]
