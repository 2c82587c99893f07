"""Notifications by mail, at a real SMTP server that takes them or not."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.notifiers.mail import mail
from certplane.broker.notifiers.making import new_notifier
from certplane.broker.notify.model import Message, MessageKind, Trouble
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.notify.receivers import MailAddress, MailSettings, MailTls, NotifierSettings
from certplane.broker.notify.text import body
from certplane.config.values import HostPort
from certplane.runtime.health import HealthWord
from certplane.sandbox.certificates import CertificateAuthority
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.smtp_server import HANG, HANG_UP, SmtpServer
from tests.support.waiting import HANG as PATIENCE

NOW = ManualClock().now()
TROUBLE = Trouble("RELOAD nginx\N{SNOWMAN}", HealthWord.EXPIRED, 2, 1, ("web1",), text="it says \N{SNOWMAN} " * 30)
MESSAGE = Message("id-1", "post", MessageKind.OPENED, NOW, (TROUBLE,), 1)
SECRETS = {
    "mail/user": "certplane",
    "mail/password": "hush",
    "mail/wrong": "other",
    "mail/letters": "h\N{LATIN SMALL LETTER U WITH DIAERESIS}sh",
}
LOGIN = {"username_secret": "mail/user", "password_secret": "mail/password"}
OPS, BOSS = "ops@example.test", "boss@example.test"

Make = Callable[..., Notifier]


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.root("Mail Root CA")


@pytest.fixture(scope="module")
def context(authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """The server's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*authority.issue("127.0.0.1", ["127.0.0.1"]).write(tmp_path_factory.mktemp("mail"), "server"))
    return made


@pytest.fixture
async def make(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Make]:
    """Makes a notifier to a server."""
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(authority.pem)
    async with AsyncExitStack() as stack:

        def made(server: SmtpServer, **section: Any) -> Notifier:
            section.setdefault("timeout", timedelta(seconds=PATIENCE))
            settings = MailSettings(
                HostPort("127.0.0.1", server.port),
                MailAddress("certplane@example.test"),
                (MailAddress(OPS), MailAddress(BOSS)),
                ca_bundle=bundle,  # type: ignore[arg-type]
                **section,
            )
            notifier = new_notifier("post", NotifierSettings(mail=settings), FakeSecretSource(SECRETS), ManualClock())
            stack.push_async_callback(notifier.close)
            return notifier

        yield made


async def refusal(notifier: Notifier) -> NotDeliveredError:
    with pytest.raises(NotDeliveredError) as caught:
        await notifier.deliver(MESSAGE)
    return caught.value


@pytest.mark.parametrize("implicit", [False, True])
async def test_a_message_is_handed_over_with_tls_and_login(make: Make, context: ssl.SSLContext, implicit: bool) -> None:
    """STARTTLS, or TLS from the first octet; the login never goes in the clear."""
    async with SmtpServer(context, implicit=implicit, login=("certplane", "hush")) as server:
        tls = MailTls.TLS if implicit else MailTls.STARTTLS
        assert await make(server, tls=tls, **LOGIN).deliver(MESSAGE) == "taken"
    assert server.logins == [("certplane", True)]
    ((recipients, taken),) = server.mails
    assert recipients == [OPS, BOSS]
    # Python 3.11 folds a header with other letters so that a space comes twice.
    assert (
        " ".join(taken["Subject"].split())
        == "[certplane] CRITICAL: 2 certificates of 1 host EXPIRED: RELOAD nginx\N{SNOWMAN}"
    )
    assert (taken["From"], taken["To"]) == ("certplane@example.test", f"{OPS}, {BOSS}")
    assert taken["Message-ID"] == "<id-1@certplane>"
    assert (taken["Auto-Submitted"], taken["Importance"]) == ("auto-generated", "high")
    assert taken["X-Certplane-Kind"] == "opened"
    assert taken.get_content().splitlines() == body(MESSAGE).splitlines()


async def test_without_tls_only_where_that_is_configured(make: Make) -> None:
    """A server that offers none, or somebody in between who takes the offer out, gets no message."""
    async with SmtpServer() as server:
        assert await make(server, tls=MailTls.NONE).deliver(MESSAGE) == "taken"
        error = await refusal(make(server))
        assert "it doesn't offer what the configuration wants: STARTTLS" in str(error)
    assert len(server.mails) == 1


async def test_a_server_of_another_ca_gets_nothing(make: Make, tmp_path: Path) -> None:
    """Neither login nor message."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*CertificateAuthority.root("other").issue("127.0.0.1", ["127.0.0.1"]).write(tmp_path, "x"))
    async with SmtpServer(context, login=("certplane", "hush")) as server:
        assert "certificate verify failed" in str(await refusal(make(server, **LOGIN)))
    assert (server.mails, server.logins) == ([], [])


REFUSALS = {
    "the message": (".", "554 5.7.1 spam", True, "it refused the message: 554 5.7.1 spam"),
    "for now": (".", "451 4.3.0 try later", False, "it refused the message: 451 4.3.0 try later"),
    "the sender": ("MAIL", "550 who", True, "it refused the sender: 550 who"),
    "every recipient": ("RCPT", "550 5.1.1 unknown", True, "it refused every recipient: 550 5.1.1 unknown"),
    "greylisting": ("RCPT", "450 4.2.0 greylisted", False, "it refused every recipient: 450 4.2.0 greylisted"),
    "at once": ("", "554 go away", False, "it answered 554 go away"),
    "for load": ("", "421 busy", False, "it answered 421 busy"),
    "by hanging up": ("DATA", HANG_UP, False, "it can't be reached: SMTPServerDisconnected"),
    "with no number": (".", "hello", False, "it refused the message: "),
}


@pytest.mark.parametrize(("verb", "answer", "refused", "text"), REFUSALS.values(), ids=REFUSALS)
async def test_a_server_that_refuses(make: Make, verb: str, answer: str, refused: bool, text: str) -> None:
    """For good, which is about this message, or for now, which is its own trouble."""
    async with SmtpServer(answers={verb: answer}) as server:
        error = await refusal(make(server, tls=MailTls.NONE))
    assert (text in str(error), error.refused) == (True, refused), error


async def test_a_wrong_password(make: Make, context: ssl.SSLContext) -> None:
    """Is about every message; the log has the server's words and not the password."""
    async with SmtpServer(context, login=("certplane", "hush")) as server:
        error = await refusal(make(server, **{**LOGIN, "password_secret": "mail/wrong"}))
    assert (str(error), error.refused) == ("it refused the login: 535 5.7.8 wrong password", False)


async def test_a_password_that_smtp_cant_take(make: Make, context: ssl.SSLContext) -> None:
    """No part of it is told."""
    async with SmtpServer(context, login=("certplane", "hush")) as server:
        error = await refusal(make(server, **{**LOGIN, "password_secret": "mail/letters"}))
    assert str(error) == "its login has characters that SMTP doesn't take: use ASCII"


@pytest.mark.parametrize("verb", ["", "EHLO", "DATA", "."])
async def test_a_server_that_hangs_is_left(make: Make, verb: str) -> None:
    """When the time is up; the thread is free for the next message then."""
    async with SmtpServer(answers={verb: HANG}) as server:
        notifier = make(server, tls=MailTls.NONE, timeout=timedelta(milliseconds=300))
        assert str(await refusal(notifier)) == "not done within 0.3 s"
        server.answers.clear()
        notifier._settings = replace(notifier._settings, timeout=timedelta(seconds=PATIENCE))  # type: ignore[attr-defined]
        assert await notifier.deliver(MESSAGE) == "taken"


async def test_what_was_taken_is_delivered_whatever_comes_then(make: Make) -> None:
    """A server that says no goodbye has the message all the same: it isn't sent again."""
    for answer in (HANG_UP, "500 what"):
        async with SmtpServer(answers={"QUIT": answer}) as server:
            assert await make(server, tls=MailTls.NONE).deliver(MESSAGE) == "taken"
        assert len(server.mails) == 1


async def test_one_recipient_of_two(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The other one has it; the log says who hasn't."""
    async with SmtpServer(answers={BOSS: "550 5.1.1 retired"}) as server:
        assert await make(server, tls=MailTls.NONE).deliver(MESSAGE) == "taken"
    assert [recipients for recipients, _ in server.mails] == [[OPS]]
    assert f"doesn't take notifications for {BOSS}: 550 5.1.1 retired" in caplog.text


async def test_nobody_listens(make: Make) -> None:
    """Told as such."""
    async with SmtpServer() as server:
        pass
    assert "it can't be reached: ConnectionRefusedError" in str(await refusal(make(server)))


async def test_a_secret_that_isnt_there(make: Make) -> None:
    """Nobody is connected to."""
    async with SmtpServer() as server:
        error = await refusal(make(server, username_secret="nosuch", password_secret="nosuch"))
        assert "there is no secret named 'nosuch'" in str(error)
        assert server.connections == 0


def test_words_of_a_host_are_no_header() -> None:
    """Line breaks are gone before, and a header would not take them."""
    settings = MailSettings(HostPort("mail.test", 25), MailAddress("a@example.test"), (MailAddress(OPS),))
    with pytest.raises(ValueError, match="linefeed or carriage return"):
        mail(replace(MESSAGE, troubles=(replace(TROUBLE, cause="x\r\nBcc: y@example.test"),)), settings)
