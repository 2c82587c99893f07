"""Follows one rollout in lines: each change for a person, each message for a program, until it goes no further."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Final

from certplane.ctl.session import Session
from certplane.ctl.show import rollout_words as words
from certplane.ctl.show import rollouts
from certplane.ctl.watch.feed import AGAIN, PASSING, retry_after
from certplane.errors import CertplaneError, ConfigurationError, RefusalError
from certplane.runtime.command import FAILED, OK
from certplane.v1 import rollout_pb2

_STAYS: Final = "the rollout goes on"


async def follow(session: Session, rollout_id: str, timeout: timedelta | None, *, json: bool | None = None) -> int:
    """Until it has ended, or halts or is paused, which an operator has to see to: 1 then, or where a host failed.

    Args:
        session: Where lines go.
        rollout_id: Which one.
        timeout: When it is given up, with 1.
        json: Whether each message is printed; by the session's format the last one alone.
    """
    shown = _Shown(session, json=json)
    try:
        async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
            async with aclosing(_messages(session, rollout_id)) as messages:
                async for rollout in messages:
                    shown.show(rollout)
                    if rollout.state in words.ENDED or words.needs_operator(rollout):
                        break
    except TimeoutError:
        session.say(f"the time is up, and {_STAYS}; see `{session.command(f'rollout show {rollout_id}')}`")
        shown.end()
        return FAILED
    shown.end()
    last = shown.last
    assert last is not None, "the messages end with an error before the first one"
    if words.needs_operator(last):
        for line in rollouts.remedies(last, session.command("rollout")):
            session.say(line)
        return FAILED
    return FAILED if words.went_wrong(last) else OK


async def _messages(session: Session, rollout_id: str) -> AsyncGenerator[rollout_pb2.Rollout, None]:
    """The rollout after each change; a broker that goes away is waited for, with the identity that the files have then.

    Raises:
        CertplaneError: it never began, or is refused for good.
    """
    rng, failures = random.SystemRandom(), 0
    begun = False
    while True:
        wait: timedelta | None = None
        try:
            async with session.client() as client, aclosing(client.watch_rollout(rollout_id)) as messages:
                async for message in messages:
                    begun, failures = True, 0
                    yield message
            said = "the broker has ended the watch"
        except CertplaneError as error:
            refused = isinstance(error, RefusalError) and error.refusal.reason not in PASSING
            if not begun or refused or isinstance(error, ConfigurationError):
                raise
            said, wait = str(error), retry_after(error)
        failures += 1
        pause = max(AGAIN.wait(failures, rng), wait or timedelta())
        session.say(f"{said}; asking again in {pause.total_seconds():.0f} s, and {_STAYS}")
        await session.clock.sleep(pause)


class _Shown:
    """What was shown of it."""

    def __init__(self, session: Session, *, json: bool | None) -> None:
        self._session = session
        self._each = json is True
        self._people = session.out.for_people if json is None else not json
        self.last: rollout_pb2.Rollout | None = None

    def show(self, rollout: rollout_pb2.Rollout) -> None:
        """One message."""
        out, now = self._session.out, self._session.now()
        if self._each:
            out.message(rollout, rollout.rollout_id)
        elif self._people:
            for line, style in rollouts.change_lines(self.last, rollout, now):
                out.line(f"{now:%H:%M:%S}Z {line}", style, folded=True)
        self.last = rollout

    def end(self) -> None:
        """The last one, for programs that wait for it."""
        if self.last is not None and not (self._each or self._people):
            self._session.out.message(self.last, self.last.rollout_id)
