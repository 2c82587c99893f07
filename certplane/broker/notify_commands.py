"""`certplane-broker notify test`: a message to each receiver, past the outbox, so that its answer is seen at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from certplane.broker.commands import Row
from certplane.broker.configured import located, secret_source
from certplane.broker.notifiers.making import open_notifiers
from certplane.broker.notify.model import Message, MessageKind
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from certplane.broker.settings import BrokerSettings
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.pool import BlockingPool

COLUMNS: Final = ("notifier", "kind", "result", "detail")
_DELIVERED: Final = "delivered"


async def try_notifiers(settings: BrokerSettings, names: Sequence[str], clock: Clock | None = None) -> list[Row]:
    """Send each of them a test message, all at once; a row each, in the file's order.

    Args:
        settings: The configuration.
        names: Which; empty for all.
        clock: For ids and times.

    Raises:
        ConfigurationError: a notifier can't be made as it is configured, or there is none of that name.
        OperationError: none is configured.
    """
    clock = clock or SystemClock()
    if not settings.notifications:
        remedy = "write `notifications` in broker.yml; docs/monitoring.md has examples"
        raise OperationError("nobody is notified: there are no notifications", remedy=remedy)
    for name in names:
        if name not in settings.notifications:
            message = f"there is no notifier {name[:64]!a}"
            known = f"there are {', '.join(settings.notifications)}"
            raise ConfigurationError([ConfigurationProblem("certplane-broker", None, "--notifier", message, known)])
    wanted = {name: each for name, each in settings.notifications.items() if not names or name in names}
    new_id = TimeOrderedIds(clock)
    async with AsyncExitStack() as stack:
        files = BlockingPool("notify-files", 1)
        stack.callback(files.close)
        secrets = secret_source(settings, files, clock)
        with located(settings):
            notifiers = await stack.enter_async_context(open_notifiers(wanted, secrets, clock))
        messages = {name: Message(new_id(), name, MessageKind.TEST, clock.now()) for name in notifiers}
        outcomes = await asyncio.gather(*(_deliver(notifiers[name], messages[name]) for name in notifiers))
    return [
        {"notifier": name, "kind": wanted[name].kind, "result": result, "detail": detail}
        for name, (result, detail) in zip(notifiers, outcomes, strict=True)
    ]


def failed(rows: Sequence[Row]) -> bool:
    """Whether one has not arrived."""
    return any(row["result"] != _DELIVERED for row in rows)


async def _deliver(notifier: Notifier, message: Message) -> tuple[str, str]:
    try:
        return _DELIVERED, await notifier.deliver(message)
    except NotDeliveredError as error:
        return "refused" if error.refused else "failed", str(error)
