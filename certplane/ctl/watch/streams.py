"""Pages that a stream tells of: heard as long as they are open."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing

from certplane.ctl.watch.feed import WatchSource
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import Question
from certplane.errors import OperationError, RefusalError


class Streams:
    """Keeps what rollouts that are open tell of themselves. One that has ended, or failed, is asked anew by `only`."""

    def __init__(self, known: Known, changed: Callable[[], None]) -> None:
        self._known = known
        self._changed = changed
        self._running: dict[Question, asyncio.Task[None]] = {}

    async def only(self, source: WatchSource | None, wanted: Iterable[Question]) -> None:
        """Hear these alone; none without a source. What was told of others stays."""
        asked = set(wanted) if source is not None else set()
        gone = [each for each, task in self._running.items() if each not in asked or task.done()]
        ended = [self._running.pop(each) for each in gone]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        if source is not None:
            for each in asked - set(self._running):
                self._running[each] = asyncio.create_task(self._hear(source, each))

    async def _hear(self, source: WatchSource, question: Question) -> None:
        try:
            async with aclosing(source.watch_rollout(question.rollout)) as messages:
                async for rollout in messages:
                    self._known.keep(question, Answer((rollout,)))
                    self._changed()
        except (RefusalError, OperationError) as error:
            before = self._known.answers.get(question, Answer())
            self._known.keep(question, Answer(before.messages, str(error)))
            self._changed()
