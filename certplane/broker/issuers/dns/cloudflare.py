"""TXT records at Cloudflare, with its official SDK.

The SDK takes whatever it isn't given from `CLOUDFLARE_*` variables, an API key or extra headers in place of the token
among them: here it gets everything explicitly, and its own repeating is off (it gives up within seconds where
Cloudflare asks for minutes). A token needs Zone:Read and DNS:Edit on its zones; a profile's `credentials` name it.

A record that was written by a try whose answer was lost is found by name and content and adopted. Records carry a
comment, so that a person sees whose they are.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

# The SDK loads these on first use, a tenth of a second on the event loop: better at the start.
import httpx
from cloudflare import APIConnectionError, APIError, APIStatusError, AsyncCloudflare

from certplane.broker.issuers.answers import parse_retry_after, printable
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.issuers.dns.provider import NoSuchZoneError
from certplane.broker.issuers.outgoing import ForbiddenUrlError, check_endpoint
from certplane.broker.model import TxtRecord
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.backoff import Backoff

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from certplane.broker.model import DnsChallenge, Profile
    from certplane.broker.ports import SecretSource
    from certplane.runtime.clock import Clock

__all__ = ["CloudflareApi", "CloudflareProvider"]

T = TypeVar("T")

_REPEAT = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=15), floor=timedelta(milliseconds=200))
_COMMENT = "certplane acme challenge"
_ZONES_PER_PAGE = 50  # the API's most
_MOST_PAGES = 200
_ZONES_FRESH = timedelta(minutes=10)
_ZONES_RELIST = timedelta(seconds=5)
"""A name without a zone makes the list be fetched again, but not for each name of an order."""

_EXISTS = frozenset({81057, 81058})
_GONE = frozenset({81044})
_CREDENTIALS = frozenset({1009, 6003, 9103, 9109, 10000})
"""Codes of the API: a record that exists, one that doesn't, and a token that isn't good or isn't good enough."""
_TEMPORARY_STATUSES = frozenset({408, 409, 425, 429})
_QUOTED = re.compile(r'\s*"((?:[^"\\]|\\.)*)"\s*')


@dataclass(frozen=True, slots=True)
class CloudflareApi:
    """`issuer.acme.cloudflare`.

    Attributes:
        base_url: https, or http to this machine.
        credentials: name of the token's secret, for profiles that name none.
        timeout: of one request.
        ttl: of the records; Cloudflare's least is a minute.
        ca_bundle: PEM file with the roots of a private API's server; None for the public ones.
    """

    base_url: str = "https://api.cloudflare.com/client/v4"
    credentials: str = "cloudflare/api-token"
    timeout: timedelta = timedelta(seconds=30)
    ttl: timedelta = timedelta(seconds=60)
    ca_bundle: Path | None = None


class CloudflareProvider:
    """A `DnsProvider` at Cloudflare."""

    def __init__(self, api: CloudflareApi, secrets: SecretSource, clock: Clock, rng: random.Random) -> None:
        """Nothing is sent yet; tokens are read at each use, so that a new one needs no restart.

        Raises:
            ConfigurationError: the base URL can't be used.
        """
        try:
            check_endpoint(api.base_url)
        except ForbiddenUrlError as error:
            problem = ConfigurationProblem("", None, "issuer.acme.cloudflare.base_url", str(error), "use an https URL")
            raise ConfigurationError([problem]) from error
        self._api, self._secrets, self._clock, self._rng = api, secrets, clock, rng
        self._http = new_http_client(api.timeout, api.ca_bundle)
        self._accounts: dict[str, _Account] = {}

    async def close(self) -> None:
        """See `DnsProvider.close`."""
        await self._http.aclose()

    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        """See `DnsProvider.plan`."""
        return TxtRecord("", challenge.record_name, challenge.record_value, credentials=profile.credentials)

    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        """See `DnsProvider.add_txt`."""
        account = await self._account(record.credentials)
        zone = await self._zone_of(record, account, deadline)

        async def create() -> str:
            created = await account.client.dns.records.create(
                zone_id=zone.id,
                type="TXT",
                name=record.name,
                content=f'"{record.value}"',
                ttl=int(self._api.ttl.total_seconds()),
                comment=_COMMENT,
            )
            return _required(created, "id")

        what = f"add a TXT record in {zone.name}"
        try:
            record_id = await self._call(what, create, deadline)
        except _ApiError as error:
            if not error.codes & _EXISTS:
                raise
            standing = await self._find(record, zone, account, deadline)
            if not standing:
                message = f"Cloudflare says that the TXT record at {record.name} exists, and doesn't list it"
                raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
            record_id = standing[0]
        return replace(record, zone=zone.name, record_id=record_id)

    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        """See `DnsProvider.remove_txt`."""
        account = await self._account(record.credentials)
        zone = await self._zone_of(record, account, deadline)
        ids = [record.record_id] if record.record_id else await self._find(record, zone, account, deadline)
        for record_id in ids:
            await self._delete(record_id, zone, account, deadline)

    async def _delete(self, record_id: str, zone: _Zone, account: _Account, deadline: Deadline) -> None:
        async def delete() -> None:
            await account.client.dns.records.delete(record_id, zone_id=zone.id)

        try:
            await self._call(f"remove a TXT record in {zone.name}", delete, deadline)
        except _ApiError as error:
            if error.status != 404 and not error.codes & _GONE:
                raise

    async def _find(self, record: TxtRecord, zone: _Zone, account: _Account, deadline: Deadline) -> list[str]:
        """Ids of the records with this name and value."""

        async def find() -> list[str]:
            page = await account.client.dns.records.list(
                zone_id=zone.id, type="TXT", name={"exact": record.name}, per_page=100
            )
            # Without `iter`: the SDK's iterator asks for pages until one is empty.
            return [
                _required(found, "id")
                for found in page.result
                if _unquoted(getattr(found, "content", None)) == record.value
            ]

        return await self._call(f"list the TXT records of {record.name}", find, deadline)

    async def _zone_of(self, record: TxtRecord, account: _Account, deadline: Deadline) -> _Zone:
        name = record.zone or record.name
        now = self._clock.monotonic()
        async with account.listing:
            zone = _longest_suffix(name, account.zones)
            fresh = _ZONES_FRESH if zone else _ZONES_RELIST
            if account.listed_at is None or now - account.listed_at > fresh.total_seconds():
                account.zones = await self._zones(account, deadline)
                account.listed_at = self._clock.monotonic()
                zone = _longest_suffix(name, account.zones)
        if zone is None:
            message = f"no zone of the Cloudflare token holds {name}: give the token Zone:Read and DNS:Edit on its zone"
            raise NoSuchZoneError(message)
        if zone.status != "active":
            raise RefusalError(Reason.DNS_REJECTED, f"the Cloudflare zone {zone.name} isn't active: {zone.status}")
        return zone

    async def _zones(self, account: _Account, deadline: Deadline) -> Mapping[str, _Zone]:
        zones: dict[str, _Zone] = {}
        for number in range(1, _MOST_PAGES + 1):

            async def fetch(number: int = number) -> list[_Zone]:
                page = await account.client.zones.list(page=number, per_page=_ZONES_PER_PAGE)
                return [_Zone.of(found) for found in page.result]

            found = await self._call("list the zones", fetch, deadline)
            # Two zones may have one name, in different accounts: an active one wins.
            for zone in found:
                if zone.name not in zones or zone.status == "active":
                    zones[zone.name] = zone
            if len(found) < _ZONES_PER_PAGE:
                break
        return zones

    async def _account(self, credentials: str) -> _Account:
        name = credentials or self._api.credentials
        token = await self._secrets.read(name)
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} isn't an API token")
        account = self._accounts.get(name)
        if account is None or account.token != token:
            account = self._accounts[name] = _Account(token, _TokenClient(token, self._api, self._http))
        return account

    async def _call(self, what: str, request: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        return await repeat(
            lambda: self._call_once(what, request, deadline),
            deadline=deadline,
            backoff=_REPEAT,
            rng=self._rng,
            on=_ApiError,
            when=lambda error: error.refusal.reason is Reason.DNS_UNAVAILABLE,
        )

    async def _call_once(self, what: str, request: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        try:
            async with asyncio.timeout(min(self._api.timeout, deadline.left).total_seconds()):
                return await request()
        except TimeoutError as error:
            raise _ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare did not {what} in time") from error
        except APIStatusError as error:
            raise self._refused(what, error) from error
        except APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise _ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare did not {what}: {cause}") from error
        except (APIError, AttributeError, TypeError, ValueError) as error:
            # The SDK hands on what it can't read as whatever it is.
            raise _ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare's answer to {what} can't be read") from error

    def _refused(self, what: str, error: APIStatusError) -> _ApiError:
        status, entries = error.status_code, _entries(error.body)
        codes = frozenset(code for code, _ in entries)
        said = "; ".join(f"{code} {message}".strip() for code, message in entries[:3]) or f"HTTP status {status}"
        if status >= 500 or (status in _TEMPORARY_STATUSES and not codes & (_EXISTS | _CREDENTIALS)):
            retry_after = parse_retry_after(error.response.headers.get("Retry-After"), self._clock.now())
            message = f"Cloudflare did not {what}: {said}"
            return _ApiError(Reason.DNS_UNAVAILABLE, message, retry_after=retry_after, status=status, codes=codes)
        remedy = "; check the API token's permissions" if status in {401, 403} or codes & _CREDENTIALS else ""
        message = f"Cloudflare refused to {what}: {said}{remedy}"
        return _ApiError(Reason.DNS_REJECTED, message, status=status, codes=codes)


class _ApiError(RefusalError):
    """A refusal with the API's own status and codes."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after: timedelta | None = None,
        status: int | None = None,
        codes: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(reason, message, retry_after=retry_after)
        self.status = status
        self.codes = codes


class _TokenClient(AsyncCloudflare):
    """The SDK's client, with the token and nothing from the environment."""

    def __init__(self, token: str, api: CloudflareApi, http: httpx.AsyncClient) -> None:
        super().__init__(
            api_token=token,
            base_url=api.base_url,
            timeout=api.timeout.total_seconds(),
            max_retries=0,
            http_client=http,
        )
        # These have no argument that means "none", and an email would take the token's place.
        self.api_key = self.api_email = self.user_service_key = None
        self._custom_headers = {}


@dataclass(frozen=True, slots=True)
class _Zone:
    id: str
    name: str
    status: str

    @classmethod
    def of(cls, found: object) -> _Zone:
        return cls(_required(found, "id"), _required(found, "name").lower(), str(getattr(found, "status", "")))


@dataclass(slots=True)
class _Account:
    """A token with its client and the zones that it may see."""

    token: str = field(repr=False)
    client: _TokenClient = field(repr=False)
    zones: Mapping[str, _Zone] = field(default_factory=dict)
    listed_at: float | None = None
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)


def _longest_suffix(name: str, zones: Mapping[str, _Zone]) -> _Zone | None:
    labels = name.split(".")
    parents = (".".join(labels[start:]) for start in range(len(labels)))
    return next((zones[parent] for parent in parents if parent in zones), None)


def _required(found: object, attribute: str) -> str:
    value = getattr(found, attribute, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"an object without {attribute}")
    return value


def _unquoted(content: object) -> str:
    """A TXT record's content as one string: the API gives it quoted, in one or more parts, or as it was written."""
    text = content if isinstance(content, str) else ""
    parts = _QUOTED.findall(text)
    if not parts or _QUOTED.sub("", text):
        return text.strip()
    return "".join(re.sub(r"\\(.)", r"\1", part) for part in parts)


def _entries(body: Any) -> list[tuple[int, str]]:
    """Codes and messages of an error answer, the messages printable."""
    errors = body.get("errors") if isinstance(body, Mapping) else None
    found = [entry for entry in errors if isinstance(entry, Mapping)] if isinstance(errors, list) else []
    return [
        (entry["code"], printable(entry.get("message"), 200)) for entry in found if isinstance(entry.get("code"), int)
    ]
