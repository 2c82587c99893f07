"""Notifiers as broker.yml has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from certplane.broker.issuers.outgoing import configured_endpoint, trusted_roots
from certplane.broker.notify.ports import Notifier
from certplane.broker.notify.receivers import NotifierSettings
from certplane.broker.ports import SecretSource
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock


@asynccontextmanager
async def open_notifiers(
    settings: Mapping[str, NotifierSettings], secrets: SecretSource, clock: Clock
) -> AsyncIterator[Mapping[str, Notifier]]:
    """All of `notifications`, by name, for the length of the block. Reads the CA bundles; connects to nobody.

    Raises:
        ConfigurationError: URLs may not be called, bundles can't be used, or Apprise isn't installed. Problems have
            the key from the top, and no line.
    """
    async with AsyncExitStack() as stack:
        notifiers = {}
        problems: list[ConfigurationProblem] = []
        for name, each in settings.items():
            try:
                notifiers[name] = notifier = new_notifier(name, each, secrets, clock)
            except ConfigurationError as error:
                problems += error.problems
            else:
                stack.push_async_callback(notifier.close)
        if problems:
            raise ConfigurationError(problems)
        yield notifiers


def new_notifier(name: str, settings: NotifierSettings, secrets: SecretSource, clock: Clock) -> Notifier:
    """One of them; see `open_notifiers`."""
    # Each loads what it needs: an HTTP client, say, is more than a broker that sends mail would load otherwise.
    section = f"notifications.{name}"
    if (webhook := settings.webhook) is not None:
        from certplane.broker.issuers.dns.http_client import new_http_client  # noqa: PLC0415 - see above
        from certplane.broker.notifiers.webhook import WebhookNotifier  # noqa: PLC0415

        if webhook.url is not None:
            configured_endpoint(webhook.url, f"{section}.webhook.url", private_http=webhook.allow_http)
        trusted = trusted_roots(webhook.ca_bundle, f"{section}.webhook.ca_bundle")
        return WebhookNotifier(webhook, new_http_client(webhook.timeout, trusted), secrets, clock)
    if (mail := settings.mail) is not None:
        from certplane.broker.notifiers.mail import MailNotifier  # noqa: PLC0415

        return MailNotifier(mail, trusted_roots(mail.ca_bundle, f"{section}.mail.ca_bundle"), secrets)
    assert settings.apprise is not None, "the section says so"
    from certplane.broker.notifiers.apprise_service import AppriseNotifier  # noqa: PLC0415

    return AppriseNotifier(settings.apprise, secrets, key=f"{section}.apprise")
