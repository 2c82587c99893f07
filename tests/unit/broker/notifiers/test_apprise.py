"""Notifications through Apprise, to a receiver of its JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from certplane.broker.notifiers.making import new_notifier
from certplane.broker.notify.model import Message, MessageKind, Trouble
from certplane.broker.notify.ports import NotDeliveredError
from certplane.broker.notify.receivers import AppriseSettings, NotifierSettings
from certplane.errors import ConfigurationError
from certplane.runtime.health import HealthWord
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.waiting import HANG
from tests.support.webhook_receiver import WebhookReceiver

# Of the library itself, with Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TROUBLE = Trouble("DNS_UNAVAILABLE ns2", HealthWord.EXPIRED, 2, 1, ("web1",))
MESSAGE = Message("id-1", "chat", MessageKind.OPENED, ManualClock().now(), (TROUBLE,), 1)
SETTINGS = NotifierSettings(apprise=AppriseSettings("chat/url", timedelta(seconds=HANG)))


async def delivered(url: str) -> str:
    notifier = new_notifier("chat", SETTINGS, FakeSecretSource({"chat/url": url} if url else {}), ManualClock())
    try:
        return await notifier.deliver(MESSAGE)
    finally:
        await notifier.close()


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    with WebhookReceiver(always=(200, (), b"")) as receiver:
        yield receiver


async def test_a_message_is_delivered(receiver: WebhookReceiver) -> None:
    """With its subject as title, and what it is to the service: a failure here."""
    assert await delivered(receiver.url.replace("http:", "json:")) == "taken"
    (request,) = receiver.requests
    assert request.json["title"] == "[certplane] CRITICAL: 2 certificates of 1 host EXPIRED: DNS_UNAVAILABLE ns2"
    assert request.json["type"] == "failure"
    assert "What to do" not in request.json["message"]
    assert "DNS_UNAVAILABLE ns2" in request.json["message"]


async def test_one_that_isnt_taken_says_why_without_the_url(
    receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The service's status; no part of the URL that may be a secret, there and in the log."""
    receiver.always = (500, (), b"")
    with pytest.raises(NotDeliveredError, match=r"Apprise could not deliver it: .*500") as caught:
        await delivered(receiver.url.replace("http://", "json://someone:t0ps3cret@"))
    assert "t0ps3cret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("url", ["nonsense://t0ps3cret", "json://"])
async def test_a_url_that_it_doesnt_know(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Named by its secret."""
    with pytest.raises(NotDeliveredError, match="the secret 'chat/url' is no URL that Apprise knows"):
        await delivered(url)
    assert "t0ps3cret" not in caplog.text


async def test_a_secret_that_isnt_there() -> None:
    """Waits until it is."""
    with pytest.raises(NotDeliveredError, match="there is no secret named 'chat/url'"):
        await delivered("")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs it."""
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(ConfigurationError) as caught:
        new_notifier("chat", SETTINGS, FakeSecretSource(), ManualClock())
    assert str(caught.value) == (
        "notifications.chat.apprise: needs the package apprise, which isn't installed; "
        "install the release's optional.txt in place of broker.txt (docs/operations.md, Install)"
    )
