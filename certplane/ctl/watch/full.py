"""Runs the full screen: the application, the watch and the questions beside it, and what is printed when it is left."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence

from certplane.ctl.watch.feed import Connect, Feed
from certplane.ctl.watch.known import Known
from certplane.ctl.watch.page import FLEET, Page
from certplane.ctl.watch.polling import Listener, Polling
from certplane.ctl.watch.terminal import WatchApp
from certplane.errors import OperationError
from certplane.runtime.clock import Clock


async def _on_the_terminal(app: WatchApp) -> None:
    # A task of its own, without the mouse: the terminal's selection stays. Textual swallows a cancellation.
    shown = asyncio.create_task(app.run_async(mouse=False))
    try:
        await asyncio.shield(shown)
    except asyncio.CancelledError:
        app.exit()
        await shown
        raise


async def run_full_screen(
    connect: Connect,
    where: str,
    hosts: Sequence[str],
    clock: Clock,
    run: Callable[[WatchApp], Awaitable[None]] = _on_the_terminal,
    *,
    page: Page = FLEET,
) -> list[str]:
    """Show the fleet, and above it `page`, until the person leaves; returns the last state in lines.

    Raises:
        CertplaneError: the watch never began.
    """
    known, wake = Known(where), asyncio.Event()
    feed = Feed(connect, hosts, clock, patient=True)

    def hurry() -> None:
        feed.hurry()
        polling.hurry()

    app = WatchApp(known, clock.now, wake.set, hurry, page)
    polling = Polling(feed, known, clock, wake, page=lambda: app.shown.page, changed=app.changed)
    following = asyncio.create_task(feed.follow(Listener(known, clock.now, app.changed, wake.set)))
    asking = asyncio.create_task(polling.run())
    for task in (following, asking):
        task.add_done_callback(lambda _: app.exit())  # else the screen would stand still
    try:
        await run(app)
    finally:
        following.cancel()
        asking.cancel()
        failed = await asyncio.gather(following, asking, return_exceptions=True)
    for error in failed:
        if isinstance(error, Exception):
            raise error
    if app.return_code:  # it has said why
        raise OperationError("the full screen has failed", remedy="watch in lines, with --plain")
    width, height = shutil.get_terminal_size()
    return app.drawing.leaving(app.shown.page, known, clock.now(), width, max(height - 12, 5))
