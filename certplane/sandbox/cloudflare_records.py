"""The zones and records of the sandbox's Cloudflare account, and their way into the DNS server.

Knows no HTTP. A lock makes each change one transaction, as Cloudflare's database does.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dns.exception

from certplane.sandbox.errors import ServerRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from certplane.runtime.clock import Clock
    from certplane.sandbox.dns_endpoint import DnsEndpoint

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


class RecordBook:
    """Every zone of the DNS server, active, with the records that were made through the API.

    Attributes:
        zone_ids: zone -> its id.
    """

    def __init__(self, dns: DnsEndpoint, clock: Clock) -> None:
        """An account without records."""
        self.zone_ids = {zone: hashlib.sha256(zone.encode()).hexdigest()[:32] for zone in dns.zones}
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
            try:
                for record in gone:
                    await self._dns.remove(record.name, record.type, record.content)
                for record in new:
                    ttl = _AUTOMATIC_TTL if record.ttl == _AUTOMATIC else timedelta(seconds=record.ttl)
                    await self._dns.add(record.name, record.type, record.content, ttl)
            except (OSError, dns.exception.DNSException, ServerRefusedError) as error:
                raise ApiError(500, 10_001, "Internal error") from error
            for record in gone:
                del self._records[record.id]
            self._records.update({record.id: record for record in new})
            return gone, new

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


def _unquoted(content: str) -> str:
    """The text of a TXT record in quotes, or without them."""
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', content)
    return "".join(strings) if strings else content
