"""TXT records at an acme-dns server: a small DNS server for nothing but challenges, behind a CNAME of each name.

POST `<endpoint>/update` with `{"subdomain", "txt"}` and the account's user and key in headers. An account can write one
name, its `fulldomain`, so a stolen one is good for nothing else. The record that is asked for stands there already:
what follows the CNAME of `_acme-challenge` gives its target as the record's name.

The server keeps two values per name and each update replaces the older one, told by whole seconds. So:

- Updates of one name go one at a time and a second apart, or the wrong value may go.
- After a lost answer nobody knows whether the update was made: the sibling is written again too.
- A third value, while two are in use, is refused and not written: it would take away another order's.
- Nothing can be deleted. Removing a record gives its place free and sends nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta

import httpx
from typing_extensions import override

from certplane.broker.issuers.answers import parse_retry_after
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.acme_dns import AcmeDnsSettings
from certplane.broker.issuers.dns.http_client import AnswerTooLargeError, new_http_client
from certplane.broker.issuers.dns.provider import DnsProvider, NoSuchZoneError, while_unavailable
from certplane.broker.issuers.outgoing import configured_endpoint, trusted_roots
from certplane.broker.model import TxtRecord
from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_VALUES = 2
_IN_USE = timedelta(minutes=15)
"""After this long a value that nobody removed is an order's that is gone: orders end sooner."""

_SPACING = timedelta(seconds=1)
"""How finely the server tells the age of values."""

_FIELDS = ("username", "password", "subdomain", "fulldomain")


class AcmeDnsProvider(DnsProvider):
    """A `DnsProvider` at an acme-dns server."""

    def __init__(
        self,
        settings: AcmeDnsSettings,
        secrets: SecretSource,
        clock: Clock,
        rng: random.Random,
        *,
        spacing: timedelta = _SPACING,
    ) -> None:
        """Nothing is sent yet; accounts are read at each use. `spacing` is between two updates of one name.

        Raises:
            ConfigurationError: the server's URL or its roots can't be used.
        """
        self._url = configured_endpoint(settings.endpoint, "issuer.acme.acme_dns.endpoint").rstrip("/")
        roots = trusted_roots(settings.ca_bundle, "issuer.acme.acme_dns.ca_bundle") if settings.ca_bundle else None
        self._client = new_http_client(settings.http_timeout, roots)
        self._settings, self._secrets, self._clock, self._rng = settings, secrets, clock, rng
        self._spacing = spacing
        self._names: dict[str, _Name] = {}

    @override
    async def close(self) -> None:
        await self._client.aclose()

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        """At most two values of a name are in use at once."""
        account = await self._account(record)
        name = self._names.setdefault(account.fulldomain, _Name())
        async with name.writing:
            siblings = name.in_use(self._clock.monotonic()) - {record.value}
            if len(siblings) >= _VALUES:
                message = f"acme-dns keeps two values at {record.name}, and other orders use both"
                raise RefusalError(Reason.DNS_UNAVAILABLE, message, retry_after=timedelta(minutes=1))
            name.used[record.value] = self._clock.monotonic() + _IN_USE.total_seconds()
            await self._write(record.value, account, name, deadline)
            while missing := {record.value, *siblings} - set(name.standing):
                await self._write(missing.pop(), account, name, deadline)
        return record

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        """The value stays until others replace it, and nobody is in its way."""
        for name in self._names.values():
            name.used.pop(record.value, None)

    async def _write(self, value: str, account: _Account, name: _Name, deadline: Deadline) -> None:
        await while_unavailable(
            lambda: self._write_once(value, account, name, deadline),
            deadline,
            self._rng,
        )

    async def _write_once(self, value: str, account: _Account, name: _Name, deadline: Deadline) -> None:
        if name.written is not None:
            await self._clock.sleep(self._spacing - timedelta(seconds=self._clock.monotonic() - name.written))
        before = tuple(name.standing)
        name.standing.clear()  # known again once there is an answer
        try:
            await self._update(value, account, deadline)
        except RefusalError as error:
            if error.refusal.reason is Reason.DNS_REJECTED:
                name.standing.extend(before)
            raise
        finally:
            name.written = self._clock.monotonic()
        name.standing.extend((*before, value))

    async def _update(self, value: str, account: _Account, deadline: Deadline) -> None:
        seconds = min(self._settings.http_timeout, deadline.left).total_seconds()
        headers = {"X-Api-User": account.username, "X-Api-Key": account.password}
        body = {"subdomain": account.subdomain, "txt": value}
        try:
            async with asyncio.timeout(seconds):
                answer = await self._client.post(f"{self._url}/update", json=body, headers=headers)
        except AnswerTooLargeError as error:
            raise RefusalError(Reason.DNS_UNAVAILABLE, f"acme-dns sent {error}") from error
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"acme-dns did not update {account.fulldomain}: {type(error).__name__}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
        if answer.status_code == 200 and _written(answer) == value:
            return
        raise self._refused(answer, account)

    def _refused(self, answer: httpx.Response, account: _Account) -> RefusalError:
        status, what = answer.status_code, f"acme-dns did not update {account.fulldomain}"
        if status == 200:
            return RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: its answer doesn't have the value")
        if status in {408, 429} or status >= 500:
            retry_after = parse_retry_after(answer.headers.get("Retry-After"), self._clock.now())
            return RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: status {status}", retry_after=retry_after)
        if status in {401, 403}:
            remedy = "check the account's username and password, and that its allowfrom has the broker's address"
            return RefusalError(Reason.DNS_REJECTED, f"{what}: status {status}; {remedy}")
        return RefusalError(Reason.DNS_REJECTED, f"{what}: status {status}; check endpoint and subdomain")

    async def _account(self, record: TxtRecord) -> _Account:
        secret = record.credentials or self._settings.accounts
        accounts = _accounts(secret, await self._secrets.read(secret))
        wanted = record.name.rstrip(".").lower()
        account = next((account for account in accounts if account.fulldomain == wanted), None)
        if account is None:
            message = f"no acme-dns account in the secret {secret!r} has the fulldomain {record.name}"
            remedy = "point the challenge name's CNAME to an account's fulldomain, and list its zone in dns.delegations"
            raise NoSuchZoneError(f"{message}; {remedy}")
        return account


@dataclass(frozen=True, slots=True)
class _Account:
    username: str
    password: str = field(repr=False)
    subdomain: str
    fulldomain: str


@dataclass(slots=True)
class _Name:
    """What is known of a name at the server.

    Attributes:
        writing: held by whoever updates it.
        used: values that orders count on, each until when at the latest.
        standing: values that the server certainly has, the older one first.
        written: when the last update ended, monotonic.
    """

    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: dict[str, float] = field(default_factory=dict)
    standing: deque[str] = field(default_factory=lambda: deque(maxlen=_VALUES))
    written: float | None = None

    def in_use(self, now: float) -> set[str]:
        self.used = {value: until for value, until in self.used.items() if now < until}
        return set(self.used)


def _accounts(secret: str, text: str) -> list[_Account]:
    """The accounts that are in a secret; its content is never quoted."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError  # noqa: TRY301 - one answer for all that is wrong
        one = any(key.lower() == "username" for key in content)
        entries = [content] if one else list(content.values())
        # Go reads JSON whatever the case of its keys, and so some clients write FullDomain.
        folded = [{key.lower(): value for key, value in entry.items()} for entry in entries]
        found = [[entry[name] for name in _FIELDS] for entry in folded]
        if not all(
            isinstance(value, str) and value.isascii() and value.isprintable() for row in found for value in row
        ):
            raise TypeError  # noqa: TRY301
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        message = f"the secret {secret!r} isn't acme-dns accounts in JSON: each has {', '.join(_FIELDS)}"
        raise RefusalError(Reason.DNS_REJECTED, message) from None  # the cause may quote it
    return [_Account(user, key, subdomain, name.rstrip(".").lower()) for user, key, subdomain, name in found]


def _written(answer: httpx.Response) -> object:
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return None
    return body.get("txt") if isinstance(body, dict) else None
