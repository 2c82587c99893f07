"""Notifications through Apprise (`apprise`), the extra `notifications`, which knows a hundred services by a URL.

Apprise answers yes or no, and logs why. What it logs while it works is caught for the operator, without any part of the
URL, which is the secret, and goes no further: it would show the URL where that can't be read. It blocks, on a thread of
its own, and has timeouts of its own (some seconds).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import threading
from typing import Any, Final

from typing_extensions import override

from certplane.broker.notify.model import Message, MessageKind
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.notify.receivers import AppriseSettings
from certplane.broker.notify.text import body, severity, subject
from certplane.broker.ports import SecretSource
from certplane.errors import ConfigurationError, ConfigurationProblem, RefusalError
from certplane.runtime.health import Severity
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import printable

_SHOWN: Final = 200
_PARTS: Final = re.compile(r"[^A-Za-z0-9_.~-]+")
_ALONE: Final = threading.Lock()
"""Held while Apprise works: what it logs for another notifier may have that one's secret."""
_LEAST_SECRET: Final = 5
"""Letters of a part of a URL that may be secret; shorter ones are words."""


class AppriseNotifier(Notifier):
    """A `Notifier` over the library."""

    def __init__(self, settings: AppriseSettings, secrets: SecretSource, *, key: str) -> None:
        """Nothing is sent yet; the URL is read at each delivery.

        Args:
            settings: The section.
            secrets: Where its secret is read.
            key: Of the section in broker.yml, for messages.

        Raises:
            ConfigurationError: the library isn't there.
        """
        try:
            self._library: Any = importlib.import_module("apprise")
        except ImportError as error:
            problem = "needs the package apprise, which isn't installed"
            remedy = "install the release's optional.txt in place of broker.txt (docs/operations.md, Install)"
            raise ConfigurationError([ConfigurationProblem("", None, key, problem, remedy)]) from error
        logging.getLogger("apprise").propagate = False  # see above
        self._settings = settings
        self._secrets = secrets
        self._pool = BlockingPool("broker-apprise", 1)

    @override
    async def deliver(self, message: Message) -> str:
        try:
            url = (await self._secrets.read(self._settings.url_secret)).strip()
        except RefusalError as error:
            raise NotDeliveredError(f"a secret can't be read: {error.refusal.message}") from error
        try:
            async with asyncio.timeout(self._settings.timeout.total_seconds()):
                await self._pool.run(self._send, url, message)
        except TimeoutError as error:
            raise NotDeliveredError(f"not done within {self._settings.timeout.total_seconds():g} s") from error
        return "taken"

    @override
    async def close(self) -> None:
        self._pool.close()

    def _send(self, url: str, message: Message) -> None:
        """Send; on the pool's thread."""
        with _ALONE:
            self._send_alone(url, message)

    def _send_alone(self, url: str, message: Message) -> None:
        library = self._library
        service = library.Apprise()
        said = _Listener(url)
        logger = logging.getLogger("apprise")
        logger.addHandler(said)
        try:
            if not service.add(url):
                text = f"the secret {self._settings.url_secret!r} is no URL that Apprise knows"
                raise NotDeliveredError(text)
            sent = service.notify(title=subject(message), body=body(message), notify_type=self._kind(message))
        finally:
            logger.removeHandler(said)
        if not sent:
            raise NotDeliveredError(f"Apprise could not deliver it: {said.last or 'it gave no reason'}")

    def _kind(self, message: Message) -> Any:
        kinds = self._library.NotifyType
        if message.kind is MessageKind.OVER:
            return kinds.SUCCESS
        return {Severity.CRITICAL: kinds.FAILURE, Severity.WARNING: kinds.WARNING, Severity.OK: kinds.INFO}[
            severity(message)
        ]


class _Listener(logging.Handler):
    """Keeps the last thing of weight that Apprise logs, without what is in its URL."""

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._secret = [part for part in _PARTS.split(url) if len(part) >= _LEAST_SECRET]

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for part in self._secret:
            text = text.replace(part, "***")
        self.last = printable(text, _SHOWN)
