"""Waiting for events with injected time, and work that a cancellation must not tear."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from certplane.runtime.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, span: timedelta, event: asyncio.Event) -> bool:
    """Wait for `event`, at most for `span`; whether it is set."""
    if event.is_set() or span <= timedelta():
        return event.is_set()
    waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(span))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return event.is_set()


async def undisturbed(read: Callable[[], Awaitable[T]], changes: Callable[[], int]) -> T:
    """What was read while `changes` stood still, however often that takes.

    Rows of before a change of ours would hide that change from memory, and nobody would tell us of it.
    """
    while True:
        before = changes()
        found = await read()
        if before == changes():
            return found


async def see_through(group: asyncio.TaskGroup, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if this task is cancelled meanwhile; the cancellation goes on afterwards.

    `work` runs as a task of `group`, so that it has an owner, but what it raises is raised here and leaves the group
    alone. Cancelling the group does stop it.
    """
    task = group.create_task(_outcome(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    work.close()  # never begun if the group was cancelled first; else it has ended and this does nothing
    if cancelled is not None:
        raise cancelled
    return task.result()()


async def _outcome(work: Coroutine[Any, Any, T]) -> Callable[[], T]:
    """What `work` came to, as a call that returns or raises it."""
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - raised again by whoever asks for the outcome
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result
