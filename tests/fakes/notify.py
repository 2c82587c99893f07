"""A `Notifier` whose receiver does what a test says."""

from __future__ import annotations

from typing_extensions import override

from certplane.broker.notify.model import Message
from certplane.broker.notify.ports import NotDeliveredError, Notifier
from tests.fakes.faults import FaultScript


class FakeNotifier(Notifier):
    """Takes everything, unless `faults` says otherwise; what came is in `messages`, also where the answer was lost."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.faults = FaultScript()
        self.closed = False

    @property
    def kinds(self) -> list[str]:
        return [message.kind.value for message in self.messages]

    def away(self, text: str = "it is away", **more: bool) -> None:
        """From now on nothing is taken."""
        self.faults.fail_always("deliver", NotDeliveredError(text, **more))

    @override
    async def deliver(self, message: Message) -> str:
        async with self.faults.around("deliver"):
            self.messages.append(message)
        return "taken"

    @override
    async def close(self) -> None:
        self.closed = True
