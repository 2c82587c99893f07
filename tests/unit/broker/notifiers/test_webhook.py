"""Notifications by POST, at a real HTTP server that behaves well or badly."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.notifiers.making import new_notifier
from certplane.broker.notify.model import Message, MessageKind, Trouble
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.notify.receivers import NotifierSettings, WebhookSettings
from certplane.config.values import HttpUrl
from certplane.errors import ConfigurationError
from certplane.runtime.health import HealthWord
from certplane.sandbox.certificates import CertificateAuthority
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.scripted_https import ScriptedHttps, answer
from tests.support.waiting import HANG
from tests.support.webhook_receiver import WebhookReceiver

NOW = ManualClock().now()
TROUBLE = Trouble("DNS_UNAVAILABLE ns2", HealthWord.FAILING, 2, 1, ("web1",), text='it says "no"')
MESSAGE = Message("id-1", "oncall", MessageKind.OPENED, NOW, (TROUBLE,), 1)
KEYS = [b"k" * 32, b"other key"]
SECRETS = {
    "hook/key": f"whsec_{base64.b64encode(KEYS[0]).decode()}\nother key\n",
    "hook/token": "t0ken",
    "hook/bad-key": "whsec_!!",
    "hook/bad-token": "a\nb",
}

Make = Callable[..., Notifier]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
async def make(receiver: WebhookReceiver) -> AsyncIterator[Make]:
    """Makes the notifier of a section; to the receiver unless the section says otherwise."""
    async with AsyncExitStack() as stack:

        def made(**section: Any) -> Notifier:
            if "url_secret" not in section:
                section.setdefault("url", HttpUrl(receiver.url))
            section.setdefault("timeout", timedelta(seconds=HANG))
            secrets = FakeSecretSource({**SECRETS, "hook/url": receiver.url, "hook/plain": "http://192.0.2.1/"})
            settings = NotifierSettings(webhook=WebhookSettings(**section))
            notifier = new_notifier("oncall", settings, secrets, ManualClock())
            stack.push_async_callback(notifier.close)
            return notifier

        yield made


async def refusal(notifier: Notifier) -> NotDeliveredError:
    with pytest.raises(NotDeliveredError) as caught:
        await notifier.deliver(MESSAGE)
    return caught.value


async def test_a_message_is_posted_as_json(make: Make, receiver: WebhookReceiver) -> None:
    """With its id and the time; unsigned where no key is named."""
    assert await make().deliver(MESSAGE) == "it answered with status 204"
    (request,) = receiver.requests
    assert request.json["troubles"][0]["reason"] == 'it says "no"'
    assert request.headers["Content-Type"] == "application/json"
    assert (request.message_id, request.headers["webhook-timestamp"]) == ("id-1", str(int(NOW.timestamp())))
    assert "webhook-signature" not in request.headers
    assert "Authorization" not in request.headers


async def test_a_message_is_signed_with_each_key_of_the_secret(make: Make, receiver: WebhookReceiver) -> None:
    """So that a receiver that knows the old or the new one verifies it."""
    await make(signing_secret="hook/key", token_secret="hook/token").deliver(MESSAGE)
    (request,) = receiver.requests
    signed = f"id-1.{int(NOW.timestamp())}.".encode() + request.body
    digests = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in KEYS]
    # The second key's text has a space, which parts keys: each word is one.
    assert request.headers["webhook-signature"].split()[0] == f"v1,{digests[0]}"
    assert len(request.headers["webhook-signature"].split()) == 3
    assert request.headers["Authorization"] == "Bearer t0ken"


async def test_a_template_is_the_body(make: Make, receiver: WebhookReceiver) -> None:
    """JSON stays JSON; of another type values stand as they are."""
    await make(template='{"text": "$reason"}').deliver(MESSAGE)
    await make(template="$reason\n", content_type="text/plain; charset=utf-8").deliver(MESSAGE)
    assert [request.body for request in receiver.requests] == [
        json.dumps({"text": TROUBLE.text}).encode(),
        b'it says "no"\n',
    ]


async def test_the_url_may_be_a_secret(make: Make, receiver: WebhookReceiver) -> None:
    """As those of chats are; it goes where a configured one may go, and is in no message."""
    await make(url_secret="hook/url").deliver(MESSAGE)
    assert len(receiver.requests) == 1
    error = await refusal(make(url_secret="hook/plain"))
    assert "it must be https" in str(error)
    assert "192.0.2.1" not in str(error)


ANSWERS = {
    "this message": (400, (), b"no such\x1b[31m field", True, "status 400: no such [31m field"),
    "too large": (413, (), b"", True, "status 413"),
    "not allowed": (403, (), b"", False, "status 403"),
    "gone": (410, (), b"", False, "status 410"),
    "broken": (500, (), b"", False, "status 500"),
    "a redirect": (302, (("Location", "https://other.test/secret"),), b"", False, "a redirect to other.test, which"),
    "a redirect to itself": (308, (("Location", "/elsewhere"),), b"", False, "a redirect to its own host, which"),
}


@pytest.mark.parametrize(("status", "headers", "said", "refused", "text"), ANSWERS.values(), ids=ANSWERS)
async def test_what_is_no_success_is_not_delivered(
    make: Make,
    receiver: WebhookReceiver,
    status: int,
    headers: tuple[tuple[str, str], ...],
    said: bytes,
    refused: bool,
    text: str,
) -> None:
    """Whether it is about this message or all, and what was said, cleaned; a redirect is followed nowhere."""
    receiver.script.append((status, headers, said))
    error = await refusal(make())
    assert (error.refused, text in str(error)) == (refused, True), error
    assert len(receiver.requests) == 1


async def test_a_receiver_may_ask_for_patience(make: Make, receiver: WebhookReceiver) -> None:
    """Retry-After."""
    receiver.script.append((429, (("Retry-After", "90"),), b""))
    assert (await refusal(make())).retry_after == timedelta(seconds=90)


async def test_one_that_hangs_is_left(make: Make, receiver: WebhookReceiver) -> None:
    """After the timeout."""
    receiver.open.clear()
    error = await refusal(make(timeout=timedelta(milliseconds=200)))
    assert (str(error), error.refused) == ("no answer within 0.2 s", False)


async def test_one_that_floods_is_not_listened_to(make: Make, receiver: WebhookReceiver) -> None:
    """Some octets of its answer are read, and the connection closed: it is delivered."""
    receiver.flood = 1 << 30
    assert (await make().deliver(MESSAGE)).startswith("it answered with status 204")
    assert receiver.sent < 64 << 20


async def test_one_that_isnt_there(make: Make) -> None:
    """Says no more than that: the path of a URL may be a secret."""
    error = await refusal(make(url=HttpUrl("http://127.0.0.1:1/t0ps3cret")))
    assert str(error).startswith("it can't be reached: ConnectError")
    assert "t0ps3cret" not in str(error)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"signing_secret": "nosuch"}, "there is no secret named 'nosuch'"),
        ({"signing_secret": "hook/bad-key"}, "begins with whsec_ and isn't base64"),
        ({"token_secret": "hook/bad-token"}, "'hook/bad-token' has characters that no token has"),
        ({"url_secret": "nosuch"}, "there is no secret named 'nosuch'"),
    ],
)
async def test_a_secret_that_cant_be_used(
    make: Make, receiver: WebhookReceiver, section: dict[str, str], text: str
) -> None:
    """Nothing is sent without it; the message waits until it is mended."""
    error = await refusal(make(**section))
    assert (text in str(error), error.refused) == (True, False)
    assert receiver.requests == []


async def test_https_is_verified_by_the_configured_bundle(tmp_path: Path) -> None:
    """And by no other."""
    server = ScriptedHttps(tmp_path, answer("200 OK", b"thanks"))
    with server.running():
        for authority, delivered in ((server.ca, True), (CertificateAuthority.root("another"), False)):
            bundle = tmp_path / "bundle.pem"
            bundle.write_bytes(authority.pem)
            section = WebhookSettings(url=HttpUrl(server.url), ca_bundle=bundle)  # type: ignore[arg-type]
            notifier = new_notifier("a", NotifierSettings(webhook=section), FakeSecretSource(), ManualClock())
            try:
                if delivered:
                    assert await notifier.deliver(MESSAGE) == "it answered with status 200: thanks"
                else:
                    assert "can't be reached" in str(await refusal(notifier))
            finally:
                await notifier.close()


def test_plain_http_to_another_machine_is_refused() -> None:
    """Names of hosts and what is wrong with them go over it; a private network may be allowed."""
    section = NotifierSettings(webhook=WebhookSettings(url=HttpUrl("http://192.0.2.1/hook")))
    with pytest.raises(ConfigurationError, match=r"notifications\.oncall\.webhook\.url: it must be https"):
        new_notifier("oncall", section, FakeSecretSource(), ManualClock())
