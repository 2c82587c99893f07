"""Calls of Cloudflare's API: the official SDK with nothing from the environment, and what its answers mean.

The SDK takes whatever it isn't given from `CLOUDFLARE_*` variables, an API key or extra headers in place of the token
among them: here it gets everything explicitly, and its own repeating is off (it gives up within seconds where
Cloudflare asks for minutes).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

# The SDK and httpx load these on first use, a quarter of a second on the event loop: better at the start.
import cloudflare.resources.dns
import cloudflare.resources.zones  # noqa: F401 - see above
import httpcore  # noqa: F401 - see above
import httpx
from cloudflare import APIConnectionError, APIError, APIStatusError, AsyncCloudflare

from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.account_limits import CallBudget, CircuitBreaker
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.provider import while_unavailable
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

T = TypeVar("T")

_REPEAT = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=15), floor=timedelta(milliseconds=200))
EXISTS = frozenset({81057, 81058})
GONE = frozenset({81044})
CREDENTIALS = frozenset({1000, 1009, 6003, 9103, 9109, 10000})
"""Codes of the API: a record that exists, one that doesn't, and a token that isn't good or isn't good enough."""
_TEMPORARY_STATUSES = frozenset({408, 409, 425, 429})
_QUOTED = re.compile(r'\s*"((?:[^"\\]|\\.)*)"\s*')


class CloudflareCalls:
    """Makes calls, within the account's limits, and repeats those that failed in passing."""

    def __init__(self, settings: CloudflareSettings, clock: Clock, rng: random.Random, budget: CallBudget) -> None:
        """`budget` is shared by all tokens: Cloudflare counts a user's calls, whatever tokens they have."""
        self._settings, self._clock, self._rng, self._budget = settings, clock, rng, budget

    async def call(
        self, what: str, request: Callable[[], Awaitable[T]], breaker: CircuitBreaker, deadline: Deadline
    ) -> T:
        """Make a call until it is answered, refused, or no time is left; `what` completes "Cloudflare did not ...".

        Raises:
            ApiError: what the API said.
            RefusalError: DNS_UNAVAILABLE: the budget or the breaker allow no call in time.
        """
        return await while_unavailable(
            lambda: self._call_within_limits(what, request, breaker, deadline),
            deadline,
            self._rng,
            _REPEAT,
        )

    async def _call_within_limits(
        self, what: str, request: Callable[[], Awaitable[T]], breaker: CircuitBreaker, deadline: Deadline
    ) -> T:
        breaker.check()
        await self._budget.take(deadline)
        with breaker.call():
            return await self._call_once(what, request, deadline)

    async def _call_once(self, what: str, request: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        try:
            async with asyncio.timeout(min(self._settings.http_timeout, deadline.left).total_seconds()):
                return await request()
        except TimeoutError as error:
            raise ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare did not {what} in time") from error
        except APIStatusError as error:
            raise self._refused(what, error) from error
        except APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare did not {what}: {cause}") from error
        except (APIError, AttributeError, TypeError, ValueError) as error:
            # The SDK hands on what it can't read as whatever it is.
            raise ApiError(Reason.DNS_UNAVAILABLE, f"Cloudflare's answer to {what} can't be read") from error

    def _refused(self, what: str, error: APIStatusError) -> ApiError:
        status, entries = error.status_code, _entries(error.body)
        codes = frozenset(code for code, _ in entries)
        said = "; ".join(f"{code} {message}".strip() for code, message in entries[:3]) or f"HTTP status {status}"
        if status >= 500 or (status in _TEMPORARY_STATUSES and not codes & (EXISTS | CREDENTIALS)):
            retry_after = parse_retry_after(error.response.headers.get("Retry-After"), self._clock.now())
            message = f"Cloudflare did not {what}: {said}"
            return ApiError(Reason.DNS_UNAVAILABLE, message, retry_after=retry_after, status=status, codes=codes)
        remedy = "; check the API token's permissions" if status in {401, 403} or codes & CREDENTIALS else ""
        message = f"Cloudflare refused to {what}: {said}{remedy}"
        return ApiError(Reason.DNS_REJECTED, message, status=status, codes=codes)


class ApiError(RefusalError):
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


class TokenClient(AsyncCloudflare):
    """The SDK's client, with the token and nothing from the environment."""

    def __init__(self, token: str, settings: CloudflareSettings, http: httpx.AsyncClient) -> None:
        super().__init__(
            api_token=token,
            base_url=settings.base_url,
            timeout=settings.http_timeout.total_seconds(),
            max_retries=0,
            http_client=http,
        )
        # These have no argument that means "none", and an email would take the token's place.
        self.api_key = self.api_email = self.user_service_key = None
        self._custom_headers = {}


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone that a token sees."""

    id: str
    name: str
    status: str
    permissions: frozenset[str] = frozenset()
    """What the token may do there, if the API says; else empty."""

    @classmethod
    def of(cls, found: object) -> Zone:
        """From the SDK's object; ValueError if it isn't one."""
        said = getattr(found, "permissions", None)
        permissions = frozenset(str(one) for one in said) if isinstance(said, list) else frozenset[str]()
        status = str(getattr(found, "status", ""))
        return cls(required(found, "id"), required(found, "name").lower(), status, permissions)


def required(found: object, attribute: str) -> str:
    """A text that an object of an answer must have; ValueError if it hasn't."""
    value = getattr(found, attribute, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"an object without {attribute}")
    return value


def unquoted(content: object) -> str:
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
        (entry["code"], one_line(entry.get("message"), 200)) for entry in found if isinstance(entry.get("code"), int)
    ]
