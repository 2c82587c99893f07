"""The zones and records of the sandbox's Cloudflare account, and their way into the DNS server.

Knows no HTTP. A lock makes each change one transaction, as Cloudflare's database does. What is written may take time to
spread, as it does in the world: the API has answered then, and the name servers don't serve it yet (`Spread`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dns.exception

from certplane.runtime.clock import Clock
from certplane.sandbox.dns_endpoint import DnsEndpoint, ZoneRecord
from certplane.sandbox.errors import ServerRefusedError

_AUTOMATIC = 1
_AUTOMATIC_TTL = timedelta(seconds=300)
_TTL_RANGE = range(60, 86_401)
_TYPES = {"A", "AAAA", "CNAME", "TXT"}


class ApiError(Exception):
    """An error answer: HTTP status, Cloudflare's code and message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """A record as the API shows it; TXT content is quoted, as Cloudflare stores it."""

    id: str
    zone_id: str
    zone: str
    type: str
    name: str
    content: str
    ttl: int
    comment: str | None
    created: datetime

    def has_content(self, content: str) -> bool:
        """Whether the content is this, quoted or not."""
        return _unquoted(content) == _unquoted(self.content)

    def as_json(self) -> dict[str, Any]:
        """The API's form."""
        created = self.created.isoformat().replace("+00:00", "Z")
        return {
            "id": self.id,
            "zone_id": self.zone_id,
            "zone_name": self.zone,
            "name": self.name,
            "type": self.type,
            "content": self.content,
            "proxiable": False,
            "proxied": False,
            "ttl": self.ttl,
            "settings": {},
            "meta": {},
            "comment": self.comment,
            "tags": [],
            "created_on": created,
            "modified_on": created,
        }


@dataclass(frozen=True, slots=True)
class _Change:
    due: float
    zone: str
    removed: tuple[ZoneRecord, ...]
    added: tuple[ZoneRecord, ...]


class Spread:
    """Writes changes into the DNS server some time after they were made, in the order in which they were made.

    A thread does that, made with the first change that has to wait: it works whatever the caller's loop does.
    """

    def __init__(self, dns: DnsEndpoint) -> None:
        """Nothing waits."""
        self._dns = dns
        self._changes: deque[_Change] = deque()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._hurried = False

    @property
    def waiting(self) -> int:
        """Changes that the DNS server doesn't have yet."""
        with self._news:
            return len(self._changes)

    def put(self, span: timedelta, zone: str, removed: Iterable[ZoneRecord], added: Iterable[ZoneRecord]) -> None:
        """Have a change written after `span`."""
        change = _Change(time.monotonic() + span.total_seconds(), zone, tuple(removed), tuple(added))
        with self._news:
            self._changes.append(change)
            self._news.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dns-spread", daemon=True)
                self._thread.start()

    def finish(self, *, hurry: bool = False) -> None:
        """Return when all is written; with `hurry` at once, however long it would take to spread. Blocks.

        Raises:
            RuntimeError: the DNS server has refused a change.
        """
        with self._news:
            self._hurried = self._hurried or hurry
            self._news.notify_all()
            self._news.wait_for(lambda: not self._changes)
            self._hurried = False
            if self._failed is not None:
                raise RuntimeError("a change was lost on its way into the DNS server") from self._failed

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._changes)
                change = self._changes[0]
                left = change.due - time.monotonic()
                if left > 0 and not self._hurried:
                    self._news.wait(left)
                    continue
            try:
                asyncio.run(self._dns.change(change.zone, removed=change.removed, added=change.added))
            except (OSError, dns.exception.DNSException, ServerRefusedError) as error:
                self._failed = error
            with self._news:
                self._changes.popleft()
                self._news.notify_all()


class RecordBook:
    """Every zone of the DNS server, active, with the records that were made through the API.

    Attributes:
        zone_ids: zone -> its id.
        spread_time: from the API's answer until the DNS server has a change; none by default. May be changed any time.
        spread: the changes on their way.
    """

    def __init__(self, dns: DnsEndpoint, clock: Clock) -> None:
        """An account without records."""
        self.zone_ids = {zone: hashlib.sha256(zone.encode()).hexdigest()[:32] for zone in dns.zones}
        self.spread_time = timedelta()
        self.spread = Spread(dns)
        self._dns = dns
        self._clock = clock
        self._started = clock.now()
        self._records: dict[str, DnsRecord] = {}
        self._lock = threading.Lock()

    def zone_name(self, zone_id: str) -> str:
        """The name of a zone.

        Raises:
            ApiError: there is none with that id.
        """
        for zone, known in self.zone_ids.items():
            if known == zone_id:
                return zone
        raise ApiError(404, 7003, "Could not route to the zone, perhaps your object identifier is invalid?")

    def zone_as_json(self, zone: str) -> dict[str, Any]:
        """The API's form of a zone."""
        started = self._started.isoformat().replace("+00:00", "Z")
        return {
            "id": self.zone_ids[zone],
            "name": zone,
            "status": "active",
            "paused": False,
            "type": "full",
            "development_mode": 0,
            "name_servers": [f"ns{number}.{zone}" for number, _ in enumerate(self._dns.addresses, start=1)],
            "created_on": started,
            "modified_on": started,
            "activated_on": started,
            "account": {"id": "0" * 32, "name": "Certplane sandbox"},
            "owner": {"id": None, "type": "user", "email": None},
            "meta": {},
            "plan": {},
            "permissions": ["#dns_records:edit", "#dns_records:read", "#zone:read"],
        }

    def of_zone(self, zone_id: str) -> list[DnsRecord]:
        """A zone's records, oldest first."""
        with self._lock:
            return [record for record in self._records.values() if record.zone_id == zone_id]

    def get(self, zone_id: str, record_id: str) -> DnsRecord:
        """One record.

        Raises:
            ApiError: there is none with that id in that zone.
        """
        with self._lock:
            return self._get(zone_id, record_id)

    async def create(self, zone_id: str, members: Mapping[str, Any]) -> DnsRecord:
        """Add a record, here and in the DNS server.

        Raises:
            ApiError: it is malformed, or there already.
        """
        _, posted = await self.batch(zone_id, (), (members,))
        return posted[0]

    async def delete(self, zone_id: str, record_id: str) -> DnsRecord:
        """Remove a record, here and from the DNS server.

        Raises:
            ApiError: there is none with that id in that zone.
        """
        deleted, _ = await self.batch(zone_id, (record_id,), ())
        return deleted[0]

    async def batch(
        self, zone_id: str, deletes: Iterable[str], posts: Iterable[Mapping[str, Any]]
    ) -> tuple[list[DnsRecord], list[DnsRecord]]:
        """Deletes, then posts, all or none.

        Raises:
            ApiError: one of them can't be done.
        """
        with self._lock:
            gone = [self._get(zone_id, record_id) for record_id in deletes]
            kept = [record for record in self._records.values() if record not in gone]
            new: list[DnsRecord] = []
            for members in posts:
                new.append(self._new(zone_id, members, [*kept, *new]))
            removed = [ZoneRecord(record.name, record.type, record.content) for record in gone]
            added = [ZoneRecord(record.name, record.type, record.content, _served_ttl(record)) for record in new]
            await self._write(self.zone_name(zone_id), removed, added)
            for record in gone:
                del self._records[record.id]
            self._records.update({record.id: record for record in new})
            return gone, new

    async def _write(self, zone: str, removed: list[ZoneRecord], added: list[ZoneRecord]) -> None:
        # Behind what still waits, whatever the time is now: changes never overtake one another.
        if self.spread_time or self.spread.waiting:
            self.spread.put(self.spread_time, zone, removed, added)
            return
        try:
            await self._dns.change(zone, removed=removed, added=added)
        except (OSError, dns.exception.DNSException, ServerRefusedError) as error:
            raise ApiError(500, 10_001, "Internal error") from error

    def _get(self, zone_id: str, record_id: str) -> DnsRecord:
        record = self._records.get(record_id)
        if record is None or record.zone_id != zone_id:
            raise ApiError(404, 81_044, "Record does not exist.")
        return record

    def _new(self, zone_id: str, members: Mapping[str, Any], present: Iterable[DnsRecord]) -> DnsRecord:
        zone = self.zone_name(zone_id)
        kind, content, ttl = members.get("type"), members.get("content"), members.get("ttl", _AUTOMATIC)
        if kind not in _TYPES:
            raise ApiError(400, 9004, "DNS record type is invalid.")
        if not isinstance(content, str) or not content:
            raise ApiError(400, 9005, "Content for the record is missing or invalid.")
        if ttl != _AUTOMATIC and ttl not in _TTL_RANGE:
            raise ApiError(400, 9021, "Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic.")
        name = str(members.get("name") or "").rstrip(".").lower()
        if not re.fullmatch(r"(@|(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*)", name):
            raise ApiError(400, 9000, "DNS name is invalid.")
        if name == "@":
            name = zone
        elif name != zone and not name.endswith(f".{zone}"):
            name = f"{name}.{zone}"  # Cloudflare takes a name outside the zone for a relative one
        if kind == "TXT":
            content = f'"{_unquoted(content)}"'
        if any(record.type == kind and record.name == name and record.content == content for record in present):
            raise ApiError(400, 81_058, "An identical record already exists.")
        comment = members.get("comment")
        return DnsRecord(
            id=secrets.token_hex(16),
            zone_id=zone_id,
            zone=zone,
            type=kind,
            name=name,
            content=content,
            ttl=int(ttl),
            comment=None if comment is None else str(comment),
            created=self._clock.now(),
        )


def _served_ttl(record: DnsRecord) -> timedelta:
    return _AUTOMATIC_TTL if record.ttl == _AUTOMATIC else timedelta(seconds=record.ttl)


def _unquoted(content: str) -> str:
    """The text of a TXT record in quotes, or without them."""
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', content)
    return "".join(strings) if strings else content
