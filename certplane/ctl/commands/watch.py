"""`certplanectl watch`."""

from __future__ import annotations

import argparse
import random
import sys
from datetime import timedelta
from typing import Final

from certplane.ctl.live import open_display
from certplane.ctl.session import Session
from certplane.errors import OF_ONE_BROKER, OperationError, Reason, RefusalError
from certplane.runtime.backoff import Backoff

_AGAIN: Final = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=30), floor=timedelta(milliseconds=200))
_PASSING: Final = OF_ONE_BROKER | {Reason.RATE_LIMITED}
"""Refusals that a watch outlives."""


async def watch(options: argparse.Namespace, session: Session) -> int:
    """Watch until a signal; a broker that restarts is waited for, a refusal that stays ends it."""
    rng = random.SystemRandom()
    begun, failures = False, 0
    with open_display(sys.stdout, session.say, session.now, as_json=options.json) as display:
        async with session.client() as client:
            while True:
                try:
                    async for message in client.watch(options.hosts):
                        begun, failures = True, 0
                        display.show(message)
                    text = "the broker has ended the watch"
                    wait = None
                except OperationError as error:
                    if not begun:
                        raise  # it never was there: a mistake of the configuration rather than a restart
                    text, wait = str(error), error.retry_after
                except RefusalError as error:
                    if error.refusal.reason not in _PASSING:
                        raise
                    text, wait = str(error), error.refusal.retry_after
                failures += 1
                again = max(_AGAIN.wait(failures, rng), wait or timedelta())
                display.interrupted(f"{text}; watching again in {again.total_seconds():.0f} s")
                await session.clock.sleep(again)
