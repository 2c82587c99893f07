"""Notifications by POST to a URL (`webhook`): the message as JSON, or an operator's template filled with it.

A request has the three headers of the Standard Webhooks specification (standardwebhooks.com, 1.0), which libraries of
many languages verify: `webhook-id`, the message's own for good; `webhook-timestamp`, when it was sent, in Unix seconds;
and with `signing_secret` `webhook-signature`: for each key of the secret `v1,` and the base64 HMAC-SHA256 of
`<id>.<timestamp>.<body>`. Any 2xx is delivered. Redirects aren't followed, and of an answer no more is read than is
shown. What the receiver says is its own word: it is cleaned, cut, and logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import httpx
from typing_extensions import override

from certplane import __version__
from certplane.broker.issuers.answers import parse_retry_after
from certplane.broker.issuers.dns.http_client import AnswerTooLargeError
from certplane.broker.issuers.outgoing import ForbiddenUrlError, check_endpoint
from certplane.broker.notify.model import Message
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.notify.receivers import WebhookSettings
from certplane.broker.notify.text import document, fill
from certplane.broker.ports import SecretSource
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import printable

_SHOWN: Final = 200
"""Octets of an answer that are read, and shown."""
_MESSAGE_ITSELF: Final = frozenset({400, 413, 415, 422})
"""Answers that are about this one message; every other one would meet the next message too."""
_LIBRARY_PREFIX: Final = "whsec_"


class WebhookNotifier(Notifier):
    """A `Notifier` that POSTs."""

    def __init__(
        self, settings: WebhookSettings, client: httpx.AsyncClient, secrets: SecretSource, clock: Clock
    ) -> None:
        """Nothing is sent yet; secrets are read at each delivery. The client is this one's own, and follows nothing."""
        self._settings = settings
        self._client = client
        self._secrets = secrets
        self._clock = clock

    @override
    async def deliver(self, message: Message) -> str:
        body = self._body(message)
        try:
            async with asyncio.timeout(self._settings.timeout.total_seconds()):
                url = await self._url()
                headers = await self._headers(message, body)
                async with self._client.stream("POST", url, content=body, headers=headers) as answer:
                    return _judged(
                        answer,
                        await _beginning(answer),
                        parse_retry_after(answer.headers.get("Retry-After"), self._clock.now()),
                    )
        except RefusalError as error:
            raise NotDeliveredError(f"a secret can't be read: {error.refusal.message}") from error
        except TimeoutError as error:
            raise NotDeliveredError(f"no answer within {self._settings.timeout.total_seconds():g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotDeliveredError(f"it can't be reached: {_words(error)}") from error

    @override
    async def close(self) -> None:
        await self._client.aclose()

    def _body(self, message: Message) -> bytes:
        if not self._settings.template:
            return json.dumps(document(message)).encode()
        return fill(self._settings.template, message, as_json=self._settings.is_json).encode()

    async def _url(self) -> str:
        if self._settings.url is not None:
            return self._settings.url
        url = (await self._secrets.read(self._settings.url_secret)).strip()
        try:
            return check_endpoint(url, private_http=self._settings.allow_http)
        except ForbiddenUrlError as error:
            text = f"the secret {self._settings.url_secret!r} is no URL that may be called: {error}"
            raise NotDeliveredError(text) from error

    async def _headers(self, message: Message, body: bytes) -> Mapping[str, str]:
        settings = self._settings
        headers = {
            "Content-Type": settings.content_type,
            "User-Agent": f"certplane/{__version__}",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(int(self._clock.now().timestamp())),
        }
        if settings.signing_secret:
            keys = (await self._secrets.read(settings.signing_secret)).split()
            headers["webhook-signature"] = signature(keys, message.message_id, headers["webhook-timestamp"], body)
        if settings.token_secret:
            token = await self._secrets.read(settings.token_secret)
            if not token.isascii() or not token.isprintable():
                raise NotDeliveredError(f"the secret {settings.token_secret!r} has characters that no token has")
            headers["Authorization"] = f"Bearer {token}"
        return headers


def signature(keys: list[str], message_id: str, timestamp: str, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each key, so that keys can be changed one side at a time.

    Args:
        keys: Each `whsec_` and base64, as libraries take them; another text is the key by its octets.
        message_id: As in the header.
        timestamp: As in the header.
        body: As it is sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.new(_key(key), signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(text: str) -> bytes:
    if text.startswith(_LIBRARY_PREFIX):
        try:
            return base64.b64decode(text.removeprefix(_LIBRARY_PREFIX), validate=True)
        except binascii.Error as error:
            raise NotDeliveredError("the signing secret begins with whsec_ and isn't base64 after that") from error
    return text.encode()


def _judged(answer: httpx.Response, said: str, retry_after: timedelta | None) -> str:
    """What a receiver said that has the message.

    Raises:
        NotDeliveredError: it hasn't.
    """
    status = answer.status_code
    text = f"it answered with status {status}" + (f": {said}" if said else "")
    if answer.is_success:
        return text
    if answer.is_redirect:
        host = urlsplit(answer.headers.get("Location", "")).hostname or "its own host"
        text = f"it answered with a redirect to {printable(host, _SHOWN)}, which isn't followed: configure that URL"
    raise NotDeliveredError(text, refused=status in _MESSAGE_ITSELF, retry_after=retry_after)


async def _beginning(answer: httpx.Response) -> str:
    """What is shown of an answer; the rest of it is never read."""
    read = b""
    async for chunk in answer.aiter_bytes():
        read += chunk[:_SHOWN]
        if len(read) >= _SHOWN:
            break
    return printable(read.decode(errors="replace"), _SHOWN).strip()


def _words(error: Exception) -> str:
    """The kind, and the text unless it may hold the URL, which may be a secret."""
    told = isinstance(error, (httpx.ConnectError, AnswerTooLargeError))
    return f"{type(error).__name__}: {error}" if told and str(error) else type(error).__name__
