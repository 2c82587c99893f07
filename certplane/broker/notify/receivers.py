"""Where a notifier delivers: a webhook, mail, or one of the services that the extra `apprise` knows.

Sections of broker.yml, apart from their adapters (`certplane.broker.notifiers`): what reads broker.yml and notifies
nobody shall not load an HTTP client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self

from certplane.broker.notify.model import Message, MessageKind
from certplane.broker.notify.settings import RulesSettings
from certplane.broker.notify.text import fields, fill
from certplane.config.decoding import Check, KeyProblem
from certplane.config.values import HostPort, HttpUrl, NonEmptyText

_PLACES: Final = ("webhook", "mail", "apprise")
LONGEST_TIMEOUT: Final = timedelta(minutes=1)
_JSON: Final = "application/json"


def _briefly(span: timedelta) -> str | None:
    return None if timedelta() < span <= LONGEST_TIMEOUT else "must be more than 0s, and at most 1m"


def _some(values: tuple[Any, ...]) -> str | None:
    return None if values else "must name at least one"


def _content_type(text: str) -> str | None:
    kind, slash, rest = text.partition("/")
    return None if kind and slash and rest and text.isascii() and text.isprintable() else f"must be like {_JSON}"


Timeout = Annotated[timedelta, Check(_briefly)]
"""For a whole delivery."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """A URL that messages are POSTed to.

    `url_secret` names a secret that is the URL, where who knows it may post (chats). `signing_secret` names the key
    that signs each request (Standard Webhooks), `token_secret` a bearer token. `template` is the body instead of the
    message as JSON. `allow_http` is for a receiver on a private network that speaks no TLS.
    """

    url: HttpUrl | None = None
    url_secret: str = ""
    signing_secret: str = ""
    token_secret: str = ""
    template: str = ""
    content_type: Annotated[str, Check(_content_type)] = _JSON
    ca_bundle: Path | None = None
    allow_http: bool = False
    timeout: Timeout = timedelta(seconds=10)

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON."""
        kind = self.content_type.partition(";")[0].strip().lower()
        return kind == _JSON or kind.endswith("+json")

    def problems(self) -> Iterator[KeyProblem]:
        """There is one URL; a template can be filled."""
        if (self.url is None) == (not self.url_secret):
            both = "and `url_secret` are both there" if self.url_secret else "is required"
            yield KeyProblem("url", both, "write url, or url_secret where the URL is the secret")
        if self.template:
            yield from self._template_problems()

    def _template_problems(self) -> Iterator[KeyProblem]:
        try:
            filled = fill(self.template, _SAMPLE, as_json=self.is_json)
            if self.is_json:
                json.loads(filled)
        except KeyError as error:
            remedy = f"known are {', '.join(fields(_SAMPLE))}"
            yield KeyProblem("template", f"names ${str(error.args[0])[:40]}, which no message has", remedy)
        except json.JSONDecodeError as error:
            remedy = 'names stand inside quotes: {"text": "$subject"}; or write another content_type'
            yield KeyProblem("template", f"makes no JSON: {error.msg} in line {error.lineno}", remedy)
        except ValueError:
            yield KeyProblem("template", "has a $ that begins no name", "write $$ for a dollar")


_SAMPLE: Final = Message("1", "", MessageKind.TEST, datetime(2026, 1, 1, tzinfo=UTC))


class MailTls(StrEnum):
    """How a mail server is spoken to."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


class MailAddress(str):
    """An address for mail, `local@domain`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address as it stands."""
        try:
            address = Address(addr_spec=text)
        except Exception as error:  # the parser's own kinds, which are no ValueErrors
            raise ValueError("must be an address like ops@example.org") from error
        if not address.username or not address.domain or not text.isascii() or not text.isprintable():
            raise ValueError("must be an address like ops@example.org")
        return cls(text)


@dataclass(frozen=True, slots=True)
class MailSettings:
    """A mail server that messages are handed to (SMTP).

    `tls` is `starttls` (port 587), `tls` from the first octet (port 465), or `none`. The two secrets, if named, are
    what it is logged in with.
    """

    server: HostPort
    sender: MailAddress
    recipients: Annotated[tuple[MailAddress, ...], Check(_some)]
    tls: MailTls = MailTls.STARTTLS
    username_secret: str = ""
    password_secret: str = ""
    ca_bundle: Path | None = None
    timeout: Timeout = timedelta(seconds=30)

    def problems(self) -> Iterator[KeyProblem]:
        """A login has two halves, and goes over TLS."""
        if bool(self.username_secret) != bool(self.password_secret):
            missing = "password_secret" if self.username_secret else "username_secret"
            yield KeyProblem(missing, "is required beside the other one", "name both secrets, or neither")
        elif self.password_secret and self.tls is MailTls.NONE:
            yield KeyProblem("tls", "is none: the password would be sent in the clear", "use starttls or tls")


@dataclass(frozen=True, slots=True)
class AppriseSettings:
    """A service that Apprise knows; `url_secret` names the secret that is its Apprise URL (`slack://...`)."""

    url_secret: NonEmptyText
    timeout: Timeout = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifierSettings(RulesSettings):
    """One of `notifications`: where, and what."""

    webhook: WebhookSettings | None = None
    mail: MailSettings | None = None
    apprise: AppriseSettings | None = None

    @property
    def kind(self) -> str:
        """Which of them it has."""
        return next(key for key in _PLACES if getattr(self, key) is not None)

    @property
    def place(self) -> WebhookSettings | MailSettings | AppriseSettings:
        """The section of that."""
        place = self.webhook or self.mail or self.apprise
        assert place is not None, "`problems` sees to it"
        return place

    def problems(self) -> Iterator[KeyProblem]:
        """It delivers to one place."""
        yield from RulesSettings.problems(self)
        places = [key for key in _PLACES if getattr(self, key) is not None]
        if len(places) != 1:
            written = " and ".join(places) + " are there" if places else "is required"
            key = places[1] if places else "webhook"
            yield KeyProblem(key, written, "write one of webhook, mail and apprise; each notifier has one")
