"""TXT records through an HTTP endpoint of one's own: the `httpreq` protocol of lego.

POST `<endpoint>/present` and `/cleanup` with JSON: `{"fqdn": "_acme-challenge.example.com.", "value": ...}`, or in the
raw mode `{"domain", "token", "keyAuth"}`, from which the endpoint makes name and value itself. Basic authentication if
both secrets are named. Any 2xx is success. The zone is the endpoint's business; the propagation check finds it.
"""

from __future__ import annotations

import asyncio
import random

import httpx
from typing_extensions import override

from certplane.broker.issuers.answers import parse_retry_after
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.http_client import AnswerTooLargeError, new_http_client
from certplane.broker.issuers.dns.httpreq import HttpreqMode, HttpreqSettings
from certplane.broker.issuers.dns.provider import DnsProvider, while_unavailable
from certplane.broker.issuers.outgoing import configured_endpoint
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_LABEL = "_acme-challenge."


class HttpreqProvider(DnsProvider):
    """A `DnsProvider` that asks an HTTP endpoint. In the raw mode a record's id is its key authorization."""

    def __init__(self, settings: HttpreqSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> None:
        """Nothing is sent yet; secrets are read at each use.

        Raises:
            ConfigurationError: the endpoint's URL can't be used.
        """
        self._url = configured_endpoint(
            settings.endpoint,
            "issuer.acme.httpreq.endpoint",
            secret=bool(settings.username_secret or settings.password_secret),
        ).rstrip("/")
        self._settings, self._secrets, self._clock, self._rng = settings, secrets, clock, rng
        self._raw = settings.mode is HttpreqMode.RAW
        self._client = new_http_client(settings.http_timeout)

    @override
    async def close(self) -> None:
        await self._client.aclose()

    @override
    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        """As the port describes, with these errors.

        Raises:
            RefusalError: DNS_REJECTED: in the raw mode, whose endpoint makes the name itself, a delegated name that
                isn't a challenge's.
        """
        if self._raw and not challenge.record_name.startswith(_LABEL):
            message = (
                f"the challenge of {challenge.domain} is delegated to {challenge.record_name}, and httpreq's raw mode "
                f"tells its endpoint domains, not names: use mode: default, or a target that begins with {_LABEL}"
            )
            raise RefusalError(Reason.DNS_REJECTED, message)
        record_id = challenge.key_authorization if self._raw else ""
        return TxtRecord("", challenge.record_name, challenge.record_value, record_id, profile.credentials)

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._post("present", record, deadline)
        return record

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._post("cleanup", record, deadline)

    async def _post(self, what: str, record: TxtRecord, deadline: Deadline) -> None:
        auth = httpx.Auth()  # adds nothing
        if self._settings.username_secret:
            username = await self._secrets.read(self._settings.username_secret)
            auth = httpx.BasicAuth(username, await self._secrets.read(self._settings.password_secret))
        await while_unavailable(
            lambda: self._post_once(what, self._body(record), auth, deadline),
            deadline,
            self._rng,
        )

    def _body(self, record: TxtRecord) -> dict[str, str]:
        if not self._raw:
            return {"fqdn": f"{record.name}.", "value": record.value}
        token, _, _ = record.record_id.partition(".")
        return {"domain": record.name.removeprefix(_LABEL), "token": token, "keyAuth": record.record_id}

    async def _post_once(self, what: str, body: dict[str, str], auth: httpx.Auth, deadline: Deadline) -> None:
        seconds = min(self._settings.http_timeout, deadline.left).total_seconds()
        try:
            async with asyncio.timeout(seconds):
                answer = await self._client.post(f"{self._url}/{what}", json=body, auth=auth)
        except AnswerTooLargeError as error:
            raise RefusalError(Reason.DNS_UNAVAILABLE, f"the httpreq endpoint sent {error}") from error
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"the httpreq endpoint did not answer {what}: {type(error).__name__}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
        if answer.is_success:
            return
        status = answer.status_code
        message = f"the httpreq endpoint answered {what} with status {status}"
        if status in {408, 429} or status >= 500:
            retry_after = parse_retry_after(answer.headers.get("Retry-After"), self._clock.now())
            raise RefusalError(Reason.DNS_UNAVAILABLE, message, retry_after=retry_after)
        raise RefusalError(Reason.DNS_REJECTED, message)
