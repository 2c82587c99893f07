"""TXT records at Cloudflare.

Records of one zone that are wanted at about the same time, by whatever orders, are one call (`dns.records.batch`: one
transaction, all or none). When Cloudflare refuses a batch, records that stand already are found and adopted, and the
rest is halved until the record that is refused stands alone: it is one order's, and the others' are written.

A record that was written by a try whose answer was lost is found by name and content and adopted. Records carry a
comment, so that a person sees whose they are. A token needs Zone:Read and DNS:Edit on its zones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypedDict

from typing_extensions import override

from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.account_limits import CallBudget, CircuitBreaker
from certplane.broker.issuers.dns.batching import Batches
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.cloudflare.calls import (
    CREDENTIALS,
    EXISTS,
    GONE,
    ApiError,
    CloudflareCalls,
    TokenClient,
    Zone,
    required,
    unquoted,
)
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.issuers.dns.provider import (
    AccountFinding,
    CheckableProvider,
    DnsProvider,
    NoSuchZoneError,
)
from certplane.broker.issuers.outgoing import configured_endpoint
from certplane.broker.model import TxtRecord
from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_COMMENT = "certplane acme challenge"
_ZONES_PER_PAGE = 50  # the API's most
_MOST_PAGES = 200
_ZONES_FRESH = timedelta(minutes=10)
_ZONES_RELIST = timedelta(seconds=5)
"""A name without a zone makes the list be fetched again, but not for each name of an order."""
_MOST_IN_BATCH = 200
"""What the smallest plan allows in one batch."""
_LIMIT_SPAN = timedelta(minutes=5)
_EDIT = "#dns_records:edit"


@dataclass(frozen=True, slots=True)
class _Write:
    """A record to add, or the id of one to delete."""

    add: TxtRecord | None = None
    delete: str = ""


class CloudflareProvider(DnsProvider, CheckableProvider):
    """A `DnsProvider` at Cloudflare."""

    gathers_writes = True

    def __init__(
        self,
        settings: CloudflareSettings,
        secrets: SecretSource,
        clock: Clock,
        rng: random.Random,
        *,
        ca_bundle: Path | None = None,
    ) -> None:
        """Nothing is sent yet; tokens are read at each use, so that a new one needs no restart.

        Without `ca_bundle`, the roots of a private API's server in PEM, the public ones are trusted.

        Raises:
            ConfigurationError: the base URL can't be used.
        """
        configured_endpoint(settings.base_url, "issuer.acme.cloudflare.base_url")
        self._settings, self._secrets, self._clock = settings, secrets, clock
        self._http = new_http_client(settings.http_timeout, ca_bundle)
        budget = CallBudget("Cloudflare's API", settings.calls_per_five_minutes, _LIMIT_SPAN, clock)
        self._calls = CloudflareCalls(settings, clock, rng, budget)
        self._accounts: dict[str, _Account] = {}

    @override
    async def close(self) -> None:
        for account in self._accounts.values():
            await account.batches.close()
        await self._http.aclose()

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        account = await self._account(record.credentials)
        zone = await self._zone_of(record, account, deadline)
        record_id = await account.batches.submit(zone, _Write(add=record), deadline, urgent=True)
        return replace(record, zone=zone.name, record_id=record_id)

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        account = await self._account(record.credentials)
        zone = await self._zone_of(record, account, deadline)
        ids = [record.record_id] if record.record_id else await self._find(record, zone, account, deadline)
        await all_of(
            account.batches.submit(zone, _Write(delete=record_id), deadline, urgent=False) for record_id in ids
        )

    @override
    async def check_account(self, credentials: str, deadline: Deadline) -> Sequence[AccountFinding]:
        account = await self._account(credentials)
        name = credentials or self._settings.credentials
        findings: list[AccountFinding] = []
        try:
            zones = await self._fresh_zones(account, deadline)
        except ApiError as error:
            if error.refusal.reason is not Reason.DNS_REJECTED:
                raise
            message = f"the API token {name!r} is not accepted: {error.refusal.message}"
            remedy = "make a token with Zone:Read and DNS:Edit on its zones, and store it under that name"
            return [AccountFinding(message, remedy, fatal=True)]
        if not zones:
            remedy = "give it Zone:Read and DNS:Edit on the zones of its names"
            findings.append(AccountFinding(f"the API token {name!r} sees no zone", remedy))
        for zone in zones.values():
            if zone.permissions and _EDIT not in zone.permissions:
                message = f"the API token {name!r} may not change records in {zone.name}"
                findings.append(AccountFinding(message, "give it DNS:Edit there, or take the zone from it"))
        return findings

    @override
    async def check_zone(self, name: str, credentials: str, deadline: Deadline) -> str:
        account = await self._account(credentials)
        zone = await self._zone_of(TxtRecord("", name, ""), account, deadline)
        if zone.permissions and _EDIT not in zone.permissions:
            message = f"the API token may not change records in {zone.name}: give it DNS:Edit there"
            raise RefusalError(Reason.DNS_REJECTED, message)
        return zone.name

    async def _write(
        self, account: _Account, zone: Zone, writes: Sequence[_Write], deadline: Deadline
    ) -> Sequence[str | RefusalError]:
        """Do all writes; returns each one's record id, or why not."""
        if len(writes) == 1:
            try:
                return [await self._write_one(account, zone, writes[0], deadline)]
            except RefusalError as error:
                return [error]
        try:
            return await self._write_batch(account, zone, writes, deadline)
        except ApiError as error:
            about_all = error.refusal.reason is Reason.DNS_UNAVAILABLE or error.codes & CREDENTIALS
            if about_all or error.status in {401, 403}:
                return [error] * len(writes)
            exists = bool(error.codes & EXISTS)
        except RefusalError as error:
            return [error] * len(writes)
        standing = await self._standing(account, zone, deadline) if exists else {}
        results: dict[int, str | RefusalError] = {}
        rest: list[int] = []
        for number, write in enumerate(writes):
            found = standing.get((write.add.name, write.add.value)) if write.add else None
            if found is not None:
                results[number] = found
            else:
                rest.append(number)
        # One of the rest is refused for itself: halves, until it is alone. Without it the others are written.
        parts = [rest] if results else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
        for part in parts:
            if part:
                done = await self._write(account, zone, [writes[number] for number in part], deadline)
                results.update(zip(part, done, strict=True))
        return [results[number] for number in range(len(writes))]

    async def _write_batch(
        self, account: _Account, zone: Zone, writes: Sequence[_Write], deadline: Deadline
    ) -> Sequence[str]:
        adds = [write.add for write in writes if write.add is not None]

        async def batch() -> dict[tuple[str, str], str]:
            # As it is sent, and as it came: the SDK's own way tries all its types on each member of each record, which
            # holds the event loop for a tenth of a second with a full batch, both ways.
            answer = await account.client.dns.records.with_raw_response.batch(
                zone_id=zone.id,
                extra_body={
                    "deletes": [{"id": write.delete} for write in writes if write.delete],
                    "posts": [self._form(record) for record in adds],
                },
            )
            result = _member(await answer.json(), "result")
            records = [SimpleNamespace(**record) for record in _member(result, "posts") or ()]
            return {_identity(record): required(record, "id") for record in records}

        what = f"change {len(writes)} TXT records in {zone.name}"
        ids = await self._calls.call(what, batch, account.breaker, deadline)
        if missing := [record for record in adds if (record.name, record.value) not in ids]:
            message = f"Cloudflare's answer doesn't list {missing[0].name} among the records that it has added"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message)
        return [ids[write.add.name, write.add.value] if write.add else write.delete for write in writes]

    async def _write_one(self, account: _Account, zone: Zone, write: _Write, deadline: Deadline) -> str:
        if write.add is None:
            await self._delete(write.delete, zone, account, deadline)
            return write.delete
        record = write.add

        async def create() -> str:
            created = await account.client.dns.records.create(zone_id=zone.id, **self._form(record))
            return required(created, "id")

        try:
            return await self._calls.call(f"add a TXT record in {zone.name}", create, account.breaker, deadline)
        except ApiError as error:
            if not error.codes & EXISTS:
                raise
            standing = await self._find(record, zone, account, deadline)
            if not standing:
                message = f"Cloudflare says that the TXT record at {record.name} exists, and doesn't list it"
                raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
            return standing[0]

    def _form(self, record: TxtRecord) -> _RecordForm:
        return {
            "type": "TXT",
            "name": record.name,
            "content": f'"{record.value}"',
            "ttl": int(self._settings.ttl.total_seconds()),
            "comment": _COMMENT,
        }

    async def _delete(self, record_id: str, zone: Zone, account: _Account, deadline: Deadline) -> None:
        async def delete() -> None:
            await account.client.dns.records.delete(record_id, zone_id=zone.id)

        try:
            await self._calls.call(f"remove a TXT record in {zone.name}", delete, account.breaker, deadline)
        except ApiError as error:
            if error.status != 404 and not error.codes & GONE:
                raise

    async def _find(self, record: TxtRecord, zone: Zone, account: _Account, deadline: Deadline) -> list[str]:
        """Ids of the records with this name and value."""

        async def find() -> list[str]:
            page = await account.client.dns.records.list(
                zone_id=zone.id, type="TXT", name={"exact": record.name}, per_page=100
            )
            # Without `iter`: the SDK's iterator asks for pages until one is empty.
            return [
                required(found, "id")
                for found in page.result
                if unquoted(getattr(found, "content", None)) == record.value
            ]

        return await self._calls.call(f"list the TXT records of {record.name}", find, account.breaker, deadline)

    async def _standing(self, account: _Account, zone: Zone, deadline: Deadline) -> Mapping[tuple[str, str], str]:
        """The broker's own records of a zone by name and value: after a batch whose answer was lost they are all there.

        Only one page, and nothing if it can't be read: what isn't found here is found one by one.
        """

        async def find() -> dict[tuple[str, str], str]:
            page = await account.client.dns.records.list(
                zone_id=zone.id, type="TXT", comment={"exact": _COMMENT}, per_page=5 * _MOST_IN_BATCH
            )
            return {_identity(found): required(found, "id") for found in page.result}

        try:
            return await self._calls.call(f"list the TXT records in {zone.name}", find, account.breaker, deadline)
        except RefusalError:
            return {}

    async def _zone_of(self, record: TxtRecord, account: _Account, deadline: Deadline) -> Zone:
        name = record.zone or record.name
        now = self._clock.monotonic()
        async with account.listing:
            zone = _longest_suffix(name, account.zones)
            fresh = _ZONES_FRESH if zone else _ZONES_RELIST
            if account.listed_at is None or now - account.listed_at > fresh.total_seconds():
                zone = _longest_suffix(name, await self._list(account, deadline))
        if zone is None:
            message = f"no zone of the Cloudflare token holds {name}: give the token Zone:Read and DNS:Edit on its zone"
            raise NoSuchZoneError(message)
        if zone.status != "active":
            raise RefusalError(Reason.DNS_REJECTED, f"the Cloudflare zone {zone.name} isn't active: {zone.status}")
        return zone

    async def _fresh_zones(self, account: _Account, deadline: Deadline) -> Mapping[str, Zone]:
        async with account.listing:
            return await self._list(account, deadline)

    async def _list(self, account: _Account, deadline: Deadline) -> Mapping[str, Zone]:
        zones: dict[str, Zone] = {}
        for number in range(1, _MOST_PAGES + 1):

            async def fetch(number: int = number) -> list[Zone]:
                page = await account.client.zones.list(page=number, per_page=_ZONES_PER_PAGE)
                return [Zone.of(found) for found in page.result]

            found = await self._calls.call("list the zones", fetch, account.breaker, deadline)
            # Two zones may have one name, in different accounts: an active one wins.
            for zone in found:
                if zone.name not in zones or zone.status == "active":
                    zones[zone.name] = zone
            if len(found) < _ZONES_PER_PAGE:
                break
        account.zones, account.listed_at = zones, self._clock.monotonic()
        return zones

    async def _account(self, credentials: str) -> _Account:
        name = credentials or self._settings.credentials
        token = await self._secrets.read(name)
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} isn't an API token")
        account = self._accounts.get(name)
        if account is None or account.token != token:
            account = self._accounts[name] = self._new_account(name, token)
        return account

    def _new_account(self, name: str, token: str) -> _Account:
        async def write(zone: Zone, writes: Sequence[_Write], deadline: Deadline) -> Sequence[str | RefusalError]:
            return await self._write(account, zone, writes, deadline)

        breaker = CircuitBreaker(f"Cloudflare's API with the token {name!r}", self._clock)
        batches = Batches(write, self._clock, most=_MOST_IN_BATCH)
        account = _Account(token, TokenClient(token, self._settings, self._http), breaker, batches)
        return account


class _RecordForm(TypedDict):
    type: Literal["TXT"]
    name: str
    content: str
    ttl: int
    comment: str


@dataclass(slots=True)
class _Account:
    """A token with its client, its limits, and the zones that it may see."""

    token: str = field(repr=False)
    client: TokenClient = field(repr=False)
    breaker: CircuitBreaker
    batches: Batches[Zone, _Write, str]
    zones: Mapping[str, Zone] = field(default_factory=dict)
    listed_at: float | None = None
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)


def _longest_suffix(name: str, zones: Mapping[str, Zone]) -> Zone | None:
    labels = name.split(".")
    parents = (".".join(labels[start:]) for start in range(len(labels)))
    return next((zones[parent] for parent in parents if parent in zones), None)


def _member(found: object, name: str) -> Any:
    """A member of a JSON object of an answer; None if there is none."""
    return found.get(name) if isinstance(found, Mapping) else None


def _identity(record: object) -> tuple[str, str]:
    """Name and value of a record of an answer."""
    return required(record, "name").lower().rstrip("."), unquoted(getattr(record, "content", None))
