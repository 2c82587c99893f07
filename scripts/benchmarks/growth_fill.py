"""A store of the size that a large fleet has after years: made once, and kept for the next run.

`python -m benchmarks.growth_fill` (with `scripts` on PYTHONPATH) makes the SQLite file of `scripts/bench growth` in the
user's cache folder and prints its path; `--database` fills another file, or a PostgreSQL database by its URL.

Each host has one certificate in force with its plan, older ones that it replaced, ended orders, an identity in the
ledger, a stream that ended, and a reported status. Everything follows from the host's number, but for the times, which
are counted back from the day of the filling: two fills of one size hold the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Table

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType
from certplane.broker.model import CertificateRecord, IdentityUse, Order, OrderState
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store import open_stores, schema
from certplane.broker.store.audit_records import event_row
from certplane.broker.store.cells import CERTIFICATE, IDENTITY_USE, ORDER, PLAN, encode_json
from certplane.broker.store.fleet_rows import encode_status
from certplane.broker.store.rows import to_micros
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, RenewalCause
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.pki.names import names_sha256
from certplane.sandbox.certificates import CertificateAuthority

_LONG: Final = timedelta(days=1000)
"""Until what is in force ends, and is due: a store that was filled once is good for as long."""
_SHARED_NAMES: Final = 1000
"""Names that several hosts have."""

_HISTORY: Final = timedelta(days=800)
_EVENTS: Final = (
    AuditEventType.CERTIFICATE_REQUEST_RECEIVED,
    AuditEventType.CERTIFICATE_AUTHORIZED,
    AuditEventType.CERTIFICATE_CACHE_HIT,
    AuditEventType.CERTIFICATE_DELIVERED,
)
_REFUSAL: Final = Refusal(Reason.DNS_REJECTED, "the TXT record was not seen at every name server in time")

Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is in the store; of certificates, one of each host is in force, and the others are those before it."""

    hosts: int = 100_000
    certificates: int = 400_000
    orders: int = 1_000_000
    events: int = 2_000_000

    def scaled(self, hosts: int) -> Size:
        """As many of everything for each host, with another number of hosts."""
        return Size(hosts, *(count * hosts // self.hosts for count in (self.certificates, self.orders, self.events)))

    def __str__(self) -> str:
        return f"{self.hosts}-{self.certificates}-{self.orders}-{self.events}"


def host_name(number: int) -> str:
    """The identity of a host."""
    return f"host{number:06}.certplane.test"


def names_of(number: int) -> tuple[str, ...]:
    """What a host's certificate is for: a name of its own, and one that others have too."""
    return (f"shared{number % _SHARED_NAMES}.certplane.test", f"www{number:06}.certplane.test")


def profile_of(number: int) -> str:
    """The profile of a host: one each."""
    return f"web{number:06}"


def sha256(text: str) -> str:
    """A hash that stands for a key, a profile or a certificate."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(number: int, turn: int) -> str:
    """The hash of the public key of a host's order of that turn, from 0."""
    return sha256(f"key {number} {turn}")


class Filling:
    """The rows of each table. A host's first orders were issued, and the newest certificate of them is in force."""

    def __init__(self, size: Size) -> None:
        """A real chain and CSR for all, since they are what is large."""
        self.size = size
        self.now = datetime.now(UTC).replace(microsecond=0)
        authority = CertificateAuthority.root("Growth root").intermediate("Growth intermediate")
        leaf = authority.issue("www000000.certplane.test", names_of(0), lifetime=_LONG)
        self._leaf_pem = leaf.certificate.public_bytes(Encoding.PEM).decode()
        self._chain_pem = "".join(each.public_bytes(Encoding.PEM).decode() for each in leaf.chain[1:])
        csr = x509.load_pem_x509_csr(build_csr(generate_private_key(KeyType.EC_P256), sans=names_of(0)).encode())
        self._csr_der = csr.public_bytes(Encoding.DER)

    def tables(self) -> Iterator[tuple[Table, Rows]]:
        """Each table with its rows, in an order that foreign keys allow."""
        yield schema.orders, map(self._order, range(self.size.orders))
        yield schema.certificates, map(self._certificate, range(self.size.certificates))
        yield schema.renewal_plans, map(self._plan, self._in_force)
        yield schema.keys, map(self._key, range(self.size.orders))
        yield schema.audit_events, map(self._event, range(self.size.events))
        for table, row in (
            (schema.identities, self._identity),
            (schema.enrollment_reports, self._enrollment),
            (schema.host_streams, self._stream),
            (schema.report_sequences, self._sequence),
            (schema.certificate_statuses, self._status),
        ):
            yield table, map(row, range(self.size.hosts))

    @property
    def _in_force(self) -> range:
        return range(self.size.certificates - self.size.hosts, self.size.certificates)

    def _time(self, index: int, count: int) -> datetime:
        """Of one of `count` that came one after the other, up to ten days ago: no limit counts them any more."""
        return self.now - timedelta(days=10) - _HISTORY * (1 - index / count)

    def _id(self, kind: int, index: int) -> str:
        """Of an order (1), or a certificate (2): they sort by time, as the broker's do."""
        milliseconds = to_micros(self._time(index, self.size.orders)) // 1000
        return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | kind << 64 | 2 << 62 | index))

    def _order(self, index: int) -> dict[str, Any]:
        turn, number = divmod(index, self.size.hosts)
        issued = index < self.size.certificates
        time = self._time(index, self.size.orders)
        order = Order(
            order_id=self._id(1, index),
            identity=host_name(number),
            profile=profile_of(number),
            profile_hash=sha256(profile_of(number)),
            dns_names=names_of(number),
            public_key_sha256=key_of(number, turn),
            csr_der=self._csr_der,
            issuer="acme",
            request_id=self._id(3, index),
            identity_serial=_serial(number),
            identity_issuer="CN=Growth identities",
            identity_anchor=sha256("anchor"),
            replaces_certificate_id=self._id(2, index - self.size.hosts) if issued and turn else "",
            state=OrderState.ISSUED if issued else OrderState.FAILED,
            create_time=time,
            update_time=time + timedelta(seconds=8),
            acme_order_url=f"https://ca.certplane.test/acme/order/{index}",
            certificate_id=self._id(2, index) if issued else "",
            error=None if issued else _REFUSAL,
            retry_time=None if issued else time + timedelta(hours=1),
            finalize_time=time + timedelta(seconds=6) if issued else None,
        )
        return {
            **ORDER.values(order),
            "names_sha256": names_sha256(order.dns_names),
            "end_time": to_micros(order.update_time),
        }

    def _certificate(self, index: int) -> dict[str, Any]:
        turn, number = divmod(index, self.size.hosts)
        time = self._time(index, self.size.orders)
        lifetime = _LONG if index in self._in_force else timedelta(days=90)
        end = (self.now if index in self._in_force else time) + lifetime
        record = CertificateRecord(
            certificate_id=self._id(2, index),
            order_id=self._id(1, index),
            identity=host_name(number),
            profile=profile_of(number),
            profile_hash=sha256(profile_of(number)),
            issuer="acme",
            dns_names=names_of(number),
            public_key_sha256=key_of(number, turn),
            serial_number=_serial(index),
            certificate_pem=self._leaf_pem,
            chain_pem=self._chain_pem,
            not_before=time,
            not_after=end,
            renew_time=end - lifetime / 10,
            create_time=time,
            acme_order_url=f"https://ca.certplane.test/acme/order/{index}",
            deliver_time=time + timedelta(seconds=9),
        )
        return CERTIFICATE.values(record)

    def _plan(self, index: int) -> dict[str, Any]:
        due = self.now + _LONG * 0.8
        plan = RenewalPlan(
            certificate_id=self._id(2, index),
            host=host_name(index % self.size.hosts),
            renew_time=due,
            cause=RenewalCause.ISSUER,
            window_start=due - timedelta(days=1),
            window_end=due + timedelta(days=1),
            next_check_time=self.now + _LONG / 2,
        )
        return {**PLAN.values(plan), "issuer": "acme", "not_after": to_micros(self.now + _LONG)}

    def _key(self, index: int) -> dict[str, Any]:
        turn, number = divmod(index, self.size.hosts)
        time = to_micros(self._time(index, self.size.orders))
        return {"public_key_sha256": key_of(number, turn), "identity": host_name(number), "first_use_time": time}

    def _identity(self, number: int) -> dict[str, Any]:
        issuer, serial, not_before, time, source_ip = IDENTITY_USE.of(self._use(number, timedelta(days=5)))
        retired = [IDENTITY_USE.of(self._use(number, timedelta(days=days))) for days in (12, 19)]
        return {
            "name": host_name(number), "issuer": issuer, "serial_number": serial, "not_before": not_before,
            "activate_time": time, "source_ip": source_ip, "newest_not_before": not_before,
            "retired": encode_json(retired), "contest": None, "displaced_count": 0, "change_sequence": 3,
        }  # fmt: skip

    def _use(self, number: int, ago: timedelta) -> IdentityUse:
        time = self.now - ago
        return IdentityUse("CN=Growth identities", _serial(number + ago.days), time, time, _address(number))

    def _enrollment(self, number: int) -> dict[str, Any]:
        return {
            "identity": host_name(number), "agent_version": "0.9.0", "host_facts": '[["os","linux"]]',
            "identity_serial_number": _serial(number), "record_time": to_micros(self.now - timedelta(days=5)),
        }  # fmt: skip

    def _stream(self, number: int) -> dict[str, Any]:
        return {
            "host": host_name(number), "agent_version": "0.9.0", "identity_serial_number": _serial(number),
            "identity_not_after": to_micros(self.now + timedelta(days=2)), "source_ip": _address(number),
            "connect_time": to_micros(self.now - timedelta(days=1)),
            "last_seen_time": to_micros(self.now - timedelta(hours=1)),
            "end_time": to_micros(self.now - timedelta(hours=1)), "clock_skew": 1000,
        }  # fmt: skip

    def _sequence(self, number: int) -> dict[str, Any]:
        return {"host": host_name(number), "epoch": sha256(host_name(number))[:32], "acknowledged_sequence": 70}

    def _status(self, number: int) -> dict[str, Any]:
        index = self.size.certificates - self.size.hosts + number
        serving = HeldCertificate(_serial(index), certificate_id=self._id(2, index), version=4)
        status = CertificateStatus(
            name="web",
            state=CertificateState.SERVING,
            profile=profile_of(number),
            dns_names=names_of(number),
            issued=serving,
            installed=serving,
            served=serving,
            renew_reason="a third of its life is left",
            update_time=self.now - timedelta(hours=1),
        )
        return {
            "host": host_name(number), "name": "web", "state": status.state, "status": encode_status(status),
            "outcome": status.outcome,
        }  # fmt: skip

    def _event(self, index: int) -> dict[str, Any]:
        number = index % self.size.hosts
        event = AuditEvent(
            event_id=str(uuid.UUID(int=index << 40 | 7 << 76)),
            timestamp=self._time(index, self.size.events),
            event_type=_EVENTS[index % len(_EVENTS)],
            request_id=str(uuid.UUID(int=index)),
            decision=AuditDecision.ALLOW,
            identity=host_name(number),
            profile_name=profile_of(number),
            profile_hash=sha256(profile_of(number)),
            policy_hash=sha256("policy"),
            source_ip=_address(number),
            user_agent="certplane-agent/0.9.0 grpc-python-asyncio/1.70.0",
            csr_sha256=sha256(f"csr {index}"),
            csr_public_key_sha256=key_of(number, 0),
            csr_dns_names=names_of(number),
            issuer_name="acme",
        )
        row = event_row(event)
        return {name: getattr(row, name) for name in ("event_id", "create_time", "record", "body", "kind")}


def _serial(index: int) -> str:
    return sha256(f"serial {index}")[:36].lstrip("0")


def _address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def fill_sqlite(path: Path, size: Size) -> None:
    """Fill a new file; it has its name when it is whole, and is not safe from a power cut before.

    Raises:
        FileExistsError: there is one.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _remove(part)
    asyncio.run(_make(driver="sqlite", path=part))
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as connection:
        # Nobody else reads it, and one that was cut short is thrown away.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = FILE"):
            connection.execute(f"PRAGMA {pragma}")
        found = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        indexes = connection.execute(found).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")  # built afterwards they are sorted once, and dense
        connection.execute("BEGIN")
        for table, rows in Filling(size).tables():
            columns, values = _columns(rows)
            marks = ", ".join("?" * len(columns))
            insert = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - of the schema
            connection.executemany(insert, values)
        connection.execute("COMMIT")
        for _, sql in indexes:
            connection.execute(sql)
        connection.execute("PRAGMA journal_mode = WAL")
    part.rename(path)
    _remove(part)


def fill_postgresql(url: str, size: Size) -> None:
    """Fill an empty database."""
    import psycopg  # noqa: PLC0415 - only who uses PostgreSQL needs its driver

    asyncio.run(_make(driver="postgresql", url=url))
    with psycopg.connect(url) as connection:
        for table, rows in Filling(size).tables():
            columns, values = _columns(rows)
            with connection.cursor().copy(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in values:
                    copy.write_row(row)
        connection.execute("ANALYZE")


async def _make(**where: Any) -> None:
    """Let the store make its schema."""
    async with open_stores(audit=None, **where):
        pass


def _columns(rows: Rows) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """The names that each row has, and the rows' values in this order."""
    all_rows = iter(rows)
    first = next(all_rows)
    return list(first), (tuple(row.values()) for row in itertools.chain([first], all_rows))


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def kept(size: Size) -> Path:
    """The file of `size` in the user's cache folder, filled if there is none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "certplane" / "growth"
    path = folder / f"{size}.db"
    if not path.exists():
        print(f"filling {path} ...", file=sys.stderr)
        fill_sqlite(path, size)
    return path


def main() -> None:
    """Fill what was asked for, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=Size().hosts, help="with four certificates, ten orders each")
    parser.add_argument("--database", help="a new file, or the URL of an empty PostgreSQL database")
    arguments = parser.parse_args()
    size = Size().scaled(arguments.hosts)
    if arguments.database is None:
        print(kept(size))
    elif "://" in arguments.database:
        fill_postgresql(arguments.database, size)
    else:
        fill_sqlite(Path(arguments.database), size)


if __name__ == "__main__":
    main()
