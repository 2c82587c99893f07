"""Notifications by mail (`mail`): handed to a mail server of the operator's, which does what mail servers do.

The standard library's client blocks, so it runs on a thread of its own; what it waits for is cut off when the time is
up, by closing its connection. A server that doesn't offer TLS where it is configured gets neither login nor message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final

from typing_extensions import override

from certplane.broker.notify.model import Message, MessageKind
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.notify.receivers import MailSettings, MailTls
from certplane.broker.notify.text import body, severity, subject
from certplane.broker.ports import SecretSource
from certplane.errors import RefusalError
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import printable

_logger = logging.getLogger("certplane.broker.notify")

_SHOWN: Final = 200
_DOMAIN: Final = "certplane"
"""Of message ids: they are one of ours for good, and no machine's name is told."""


class MailNotifier(Notifier):
    """A `Notifier` that sends mail, over a connection for each message."""

    def __init__(self, settings: MailSettings, context: ssl.SSLContext, secrets: SecretSource) -> None:
        """Nothing is sent yet; secrets are read at each delivery. `context` verifies the server."""
        self._settings = settings
        self._context = context
        self._secrets = secrets
        self._pool = BlockingPool("broker-mail", 1)

    @override
    async def deliver(self, message: Message) -> str:
        login = None
        settings = self._settings
        try:
            if settings.username_secret:
                login = (
                    await self._secrets.read(settings.username_secret),
                    await self._secrets.read(settings.password_secret),
                )
        except RefusalError as error:
            raise NotDeliveredError(f"a secret can't be read: {error.refusal.message}") from error
        exchange = _Exchange(settings, self._context)
        try:
            async with asyncio.timeout(settings.timeout.total_seconds()):
                return await self._pool.run(exchange.send, mail(message, settings), login)
        except TimeoutError as error:
            raise NotDeliveredError(f"not done within {settings.timeout.total_seconds():g} s") from error
        finally:
            exchange.cut()

    @override
    async def close(self) -> None:
        self._pool.close()


def mail(message: Message, settings: MailSettings) -> EmailMessage:
    """The message as mail. Replies and answers of machines are not wanted; a mail program shows one thread a cause."""
    made = EmailMessage(policy=SMTP)
    made["Subject"] = subject(message)
    made["From"] = settings.sender
    made["To"] = ", ".join(settings.recipients)
    made["Date"] = message.create_time
    made["Message-ID"] = f"<{message.message_id}@{_DOMAIN}>"
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: no vacation notice answers it
    if severity(message) == "critical":
        made["Importance"] = "high"
    made["X-Certplane-Kind"] = message.kind.value
    if message.kind is not MessageKind.TEST and message.trouble_count == 1:
        made["X-Certplane-Cause"] = message.troubles[0].cause
    made.set_content(body(message), cte="quoted-printable")  # not every server takes 8 bits
    return made


class _Client(smtplib.SMTP):
    """A connection to the server, over TLS from the first octet where it gets a context."""

    def __init__(
        self, settings: MailSettings, context: ssl.SSLContext | None, opened: Callable[[socket.socket], None]
    ) -> None:
        """Connect, and hear the server's greeting. `opened` is given a duplicate of the socket."""
        self._first_context = context
        self._opened = opened
        super().__init__(settings.server.host, settings.server.port, timeout=settings.timeout.total_seconds())

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # the library's own hook for this
        plain = socket.create_connection((host, port), timeout)
        self._opened(plain.dup())  # TLS takes the socket itself over, and may hang in its handshake
        return plain if self._first_context is None else self._first_context.wrap_socket(plain, server_hostname=host)


class _Exchange:
    """One connection. `send` is for the pool's thread, `cut` for the event loop's."""

    def __init__(self, settings: MailSettings, context: ssl.SSLContext) -> None:
        self._settings = settings
        self._context = context
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def send(self, made: EmailMessage, login: tuple[str, str] | None) -> str:
        """Hand the message over; what to say in the log.

        Raises:
            NotDeliveredError: it wasn't taken.
        """
        try:
            return self._sent(made, login)
        except smtplib.SMTPRecipientsRefused as error:
            raise _refused("every recipient", min(error.recipients.values())) from error
        except smtplib.SMTPSenderRefused as error:
            raise _refused("the sender", (error.smtp_code, error.smtp_error)) from error
        except smtplib.SMTPDataError as error:
            raise _refused("the message", (error.smtp_code, error.smtp_error)) from error
        except smtplib.SMTPAuthenticationError as error:
            raise NotDeliveredError(f"it refused the login: {_answer((error.smtp_code, error.smtp_error))}") from error
        except smtplib.SMTPResponseException as error:
            raise NotDeliveredError(f"it answered {_answer((error.smtp_code, error.smtp_error))}") from error
        except smtplib.SMTPNotSupportedError as error:
            text = f"it doesn't offer what the configuration wants: {printable(str(error), _SHOWN)}"
            raise NotDeliveredError(text) from error
        except UnicodeError as error:  # whose text has a part of what it is about
            raise NotDeliveredError("its login has characters that SMTP doesn't take: use ASCII") from error
        except (smtplib.SMTPException, OSError, ValueError) as error:
            text = printable(str(error), _SHOWN)
            raise NotDeliveredError(f"it can't be reached: {type(error).__name__}: {text}") from error

    def cut(self) -> None:
        """End what `send` waits for, if it still does."""
        with self._lock:
            self._over = True
            if self._socket is not None:
                with self._socket, contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _note(self, opened: socket.socket) -> None:
        with self._lock:
            if self._over:
                opened.close()
                raise TimeoutError("too late")
            self._socket = opened

    def _sent(self, made: EmailMessage, login: tuple[str, str] | None) -> str:
        settings = self._settings
        client = _Client(settings, self._context if settings.tls is MailTls.TLS else None, self._note)
        try:
            if settings.tls is MailTls.STARTTLS:
                client.starttls(context=self._context)
            if login is not None:
                client.login(*login)
            unknown = client.send_message(made, settings.sender, list(settings.recipients))
            # From here on the server has it: that it says no goodbye changes nothing.
            with contextlib.suppress(smtplib.SMTPException, OSError):
                client.quit()
        finally:
            client.close()
        for who, why in unknown.items():
            _logger.warning("the mail server doesn't take notifications for %s: %s", who, _answer(why))
        return "taken"


def _refused(what: str, answer: tuple[int, bytes | str]) -> NotDeliveredError:
    """A 5xx is for good, and about this message; a 4xx is the server's trouble (RFC 5321 4.2.1)."""
    return NotDeliveredError(f"it refused {what}: {_answer(answer)}", refused=answer[0] >= 500)


def _answer(answer: tuple[int, bytes | str]) -> str:
    code, said = answer
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return printable(f"{code} {text}", _SHOWN)
