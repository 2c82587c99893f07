"""`DirectoryCaaIdentity`: what a CA is called in CAA records, by its own directory (RFC 8555 7.1.1, `caaIdentities`).

It fetches the directory alone, without an account and without the ACME client's workers, at most once an hour and only
when a name has CAA records at all. The account's URL is what the issuer knows of it: before the first order, nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import httpx
from typing_extensions import override

from certplane.broker.issuers.acme import AcmeServer
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.ports import CaaIdentity, CaaIdentitySource
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_FRESH: Final = timedelta(hours=1)
_REQUEST_TIMEOUT: Final = timedelta(seconds=10)
_MOST: Final = 20
_DOMAIN = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,9}\.?", re.ASCII)


def caa_identities(body: object) -> tuple[str, ...]:
    """The names that a directory gives, lower case; whatever isn't a name is left out. Pure."""
    meta = body.get("meta") if isinstance(body, dict) else None
    named = meta.get("caaIdentities") if isinstance(meta, dict) else None
    found = [one for one in named[:_MOST] if isinstance(one, str)] if isinstance(named, list) else []
    return tuple(one.lower().rstrip(".") for one in found if _DOMAIN.fullmatch(one))


class DirectoryCaaIdentity(CaaIdentitySource):
    """A `CaaIdentitySource` for one CA."""

    def __init__(self, server: AcmeServer, account_url: Callable[[], str], clock: Clock) -> None:
        """Nothing is asked yet.

        Args:
            server: which CA.
            account_url: the account's URL, empty as long as it isn't known.
            clock: how long the directory's word is taken.
        """
        self._url, self._account_url, self._clock = server.directory_url, account_url, clock
        self._http = new_http_client(_REQUEST_TIMEOUT, server.ca_bundle)
        self._http.headers["User-Agent"] = server.user_agent
        self._names: tuple[str, ...] = ()
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    @override
    async def caa_identity(self, timeout: timedelta) -> CaaIdentity:
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._reading:
                now = self._clock.monotonic()
                if self._read_at is None or now - self._read_at > _FRESH.total_seconds():
                    self._names = await self._read()
                    self._read_at = now
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            message = f"the CA's directory can't be read ({type(error).__name__})"
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, message) from error
        return CaaIdentity(self._names, self._account_url())

    async def _read(self) -> tuple[str, ...]:
        answer = await self._http.get(self._url)
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}")
        return caa_identities(answer.json())
