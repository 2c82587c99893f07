"""The full screen with keys, without a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from textual.events import Key, Paste
from textual.pilot import Pilot

from certplane.ctl.watch.feed import NoSuchHostError, WatchSource
from certplane.ctl.watch.full import run_full_screen
from certplane.ctl.watch.page import FLEET, Page, PageKind
from certplane.ctl.watch.terminal import WatchApp
from certplane.errors import OperationError, Reason, RefusalError
from certplane.v1 import fleet_pb2, renewal_pb2
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until
from tests.support.watched_fleet import NOW, FakeFleetSource, Message, certificate, host, troubled_fleet

SIZE = (80, 24)


class Seen:
    """The application as somebody sees it who presses keys."""

    def __init__(self, app: WatchApp, pilot: Pilot[None], source: FakeFleetSource) -> None:
        self.app = app
        self.pilot = pilot
        self.source = source

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        width, height = self.app.size
        strips = self.app.screen._compositor.render_strips()  # what a screenshot is made of
        return [strip.text for strip in strips[:height]] if width else []

    async def press(self, *keys: str) -> None:
        """Press keys; the screen is drawn anew after each."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def sees(self, text: str) -> None:
        """It is there soon."""

        async def there() -> bool:
            await self.pilot.pause()
            return any(text in line for line in self.lines)

        await until(there, what=f"{text!r} on the screen")

    @property
    def at_cursor(self) -> str:
        """The line of the cursor."""
        view = self.app._viewport()
        return self.app._body.lines.line(view.cursor).text


async def watched(
    look: Callable[[Seen], Awaitable[None]],
    hosts: Sequence[renewal_pb2.Host] = (),
    *,
    size: tuple[int, int] = SIZE,
    wanted: Sequence[str] = (),
    prepare: Callable[[FakeFleetSource], None] = lambda source: None,
    clock: ManualClock | None = None,
    page: Page = FLEET,
) -> list[str]:
    """Runs it all on a screen of this size, until `look` has ended; returns what stays on the terminal."""
    source = FakeFleetSource(hosts or troubled_fleet())
    prepare(source)

    @asynccontextmanager
    async def connect() -> AsyncIterator[WatchSource]:
        async with source as opened:
            yield opened

    async def run(app: WatchApp) -> None:
        async with app.run_test(size=size) as pilot:
            await look(Seen(app, pilot, source))

    async with no_hang():
        return await run_full_screen(
            connect, "https://broker.example.test", wanted, clock or ManualClock(NOW), run, page=page
        )


async def test_the_worst_is_on_the_screen_and_stays_on_the_terminal() -> None:
    """24 lines of 80 columns show who is hurt, the five questions, the worst hosts and how many there are."""

    async def look(seen: Seen) -> None:
        await seen.sees("1-15 of 58")
        assert "HURT NOW 4" in seen.lines[1]
        assert seen.lines[7].startswith("EXPIRED        app170")
        assert seen.lines[-1].startswith("?:keys")

    left = await watched(look)
    assert left[0].startswith("HURT NOW 4")


async def test_down_into_a_host_and_out_again() -> None:
    """Arrows, Enter and Esc: from the list to a host, to its certificate with orders and events, and back."""

    async def look(seen: Seen) -> None:
        await seen.sees("app136")
        await seen.press("down")
        assert "app136" in seen.at_cursor
        await seen.press("enter")
        await seen.sees("app136.example.test (app136 in the policy)")
        while "shop" not in seen.at_cursor:
            await seen.press("j")
        await seen.press("enter")
        await seen.sees("certificate_issued")
        await seen.sees("validating shop.example.test")
        assert seen.app.shown.page.kind is PageKind.CERTIFICATE
        await seen.press("escape", "escape")
        assert "app136" in seen.at_cursor  # the cursor is where it was

    await watched(look)


async def test_a_filter_works_while_it_is_typed() -> None:
    """Enter keeps it, Esc clears it; keys of the list are letters while it is typed."""

    async def look(seen: Seen) -> None:
        await seen.sees("1-15 of 58")
        await seen.press("slash", "q", "u", "i", "e", "t")
        await seen.sees("1-1 of 1")
        assert any(line.startswith("UNHEARD        quiet1") for line in seen.lines)
        await seen.press("enter")
        assert not seen.app.shown.typing
        await seen.press("slash", "x", "escape")
        await seen.sees("1-15 of 58")
        assert seen.app.shown.view.text == ""

    await watched(look)


async def test_keys_that_come_faster_than_the_screen() -> None:
    """Each is taken in its turn: a filter, its end, and the host that it found."""

    async def look(seen: Seen) -> None:
        await seen.sees("1-15 of 58")
        for key in ("slash", "q", "u", "i", "e", "t", "enter", "enter"):
            seen.app.post_message(Key(key, key if len(key) == 1 else None))
        await seen.sees("quiet1.example.test (quiet1 in the policy)")

    await watched(look)


async def test_what_is_pasted_is_a_filter_or_nothing() -> None:
    """A word that is pasted over the list presses no keys."""

    async def look(seen: Seen) -> None:
        await seen.sees("1-15 of 58")
        seen.app.post_message(Paste("qs"))
        await seen.press("slash")
        seen.app.post_message(Paste("post\x1bfix"))
        await seen.sees("/postfix_")
        await seen.sees("1-1 of 1")

    await watched(look)


async def test_a_change_is_seen_and_a_pause_hides_it() -> None:
    """What is paused stands still and counts what it doesn't show."""

    async def look(seen: Seen) -> None:
        await seen.sees("HURT NOW 4")
        await seen.press("p")
        ill = certificate("web", renewal_pb2.HEALTH_EXPIRED, cause="BROKEN")
        change = Message.CertificateChange(host="well00.example.test", certificate=ill)
        seen.source.tell(Message(certificate_change=change))
        await seen.sees("paused, 1 change since: p goes on")
        assert "HURT NOW 4" in seen.lines[1]
        assert "PAUSED" in seen.lines[0]
        await seen.press("space")
        await seen.sees("HURT NOW 5")

    await watched(look)


async def test_a_broker_that_goes_away_is_told_and_the_fleet_stays() -> None:
    """Nothing is cleared; the state says that it is not the present."""

    async def look(seen: Seen) -> None:
        await seen.sees("live")
        seen.source.tell(OperationError("the broker can't be reached", remedy="check that it runs"))
        await seen.sees("the broker can't be reached; check that it runs; again at")
        await seen.sees("AWAY 03:02:01Z")
        await seen.sees("app170")
        await seen.press("ctrl+r")  # the clock stands still: nobody waits for the time that was said
        await seen.sees("live")
        assert seen.source.watches == 2

    await watched(look)


async def test_a_role_that_is_taken_away_is_told() -> None:
    """With the remedy; the last state stays on the screen."""

    async def look(seen: Seen) -> None:
        await seen.sees("live")
        seen.source.tell(RefusalError(Reason.ROLE_REQUIRED, "needs the role viewer; give this one the role"))
        await seen.sees("ROLE_REQUIRED: needs the role viewer; give this one the role")

    await watched(look)


@pytest.mark.parametrize("size", [(20, 6), (20, 24), (40, 10), (200, 50)], ids=str)
async def test_small_and_large_screens(size: tuple[int, int]) -> None:
    """From 20 columns and 6 lines on the worst host is seen, and another size while it runs is taken."""

    async def look(seen: Seen) -> None:
        await seen.sees("app170")
        await seen.press("s", "escape", "question_mark", "escape", "end", "home", "pagedown")
        await seen.pilot.resize_terminal(80, 24)
        await seen.sees("MISSING")
        await seen.pilot.resize_terminal(*size)
        await seen.sees("of 58")

    await watched(look, size=size)


async def test_ten_thousand_hosts() -> None:
    """They are a list like any other: to its end and back, sorted and filtered."""
    many = [host(f"h{number:05}", certificate()) for number in range(10_000)]

    async def look(seen: Seen) -> None:
        await seen.sees("of 10000")
        await seen.press("end")
        await seen.sees("-10000 of 10000")
        assert "h09999" in seen.at_cursor
        await seen.press("O")
        await seen.press("home", "slash", "7", "7", "7", "7")
        await seen.sees("h07777")

    await watched(look, many)


async def test_keys_that_leave() -> None:
    """Q and Ctrl-C, wherever one is."""
    for key in ("q", "ctrl+c"):

        async def look(seen: Seen, key: str = key) -> None:
            await seen.sees("live")
            await seen.press("s", key)
            await until(lambda: not seen.app.is_running or seen.app._exit)

        await watched(look)


async def test_a_host_that_isnt_there_ends_it() -> None:
    """With an error, not with an empty table."""

    async def look(seen: Seen) -> None:
        await until(lambda: seen.app._exit)

    with pytest.raises(NoSuchHostError, match="there is no host nosuch in the fleet"):
        await watched(look, wanted=["nosuch"])


async def test_the_brokers_summary_takes_the_place_of_the_rows() -> None:
    """As soon as it has answered; one that fails later is told in the summary, and the old one stays."""
    summary = fleet_pb2.SummarizeFleetResponse(hurt_count=77)

    def prepare(source: FakeFleetSource) -> None:
        source.summary = summary

    async def look(seen: Seen) -> None:
        await seen.sees("HURT NOW 77")
        seen.source.summary = OperationError("didn't answer in time")
        await seen.press("s", "ctrl+r")
        await seen.sees("no newer summary: didn't answer in time")
        await seen.sees("Who is hurt now: 77")

    await watched(look, prepare=prepare)


async def test_a_quiet_fleet_is_as_of_the_brokers_last_answer() -> None:
    """The watch tells nothing for hours where nothing changes: that is no time for which the broker was away."""
    clock = ManualClock(NOW)

    def prepare(source: FakeFleetSource) -> None:
        source.summary = fleet_pb2.SummarizeFleetResponse()

    async def look(seen: Seen) -> None:
        await seen.sees("of 58")
        await until(lambda: seen.source.summaries, what="the first summary")
        asked = seen.source.summaries
        clock.advance(timedelta(hours=3))
        await seen.press("ctrl+r")
        await until(lambda: seen.source.summaries > asked, what="a later summary")
        seen.source.tell(OperationError("the broker is away"))
        await seen.sees("AWAY 06:02:01Z")

    left = await watched(look, prepare=prepare, clock=clock)
    assert left[-1].endswith("as of 06:02:01Z")


async def test_what_stays_when_it_is_cancelled() -> None:
    """SIGTERM: the tasks end with it."""
    begun = asyncio.Event()

    async def look(seen: Seen) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(watched(look))
    await begun.wait()
    others = asyncio.all_tasks()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert others - asyncio.all_tasks()


async def test_who_leafs_through_pages_asks_for_these_alone() -> None:
    """The summary comes every five seconds whatever is opened; answers that are old enough are forgotten."""
    many = [host(f"h{number:03}", certificate()) for number in range(120)]

    async def look(seen: Seen) -> None:
        await seen.sees("of 120")
        for _ in range(5):
            await seen.press("enter")
            await seen.sees("in the policy")
            await seen.press("escape", "down")
        assert len(set(seen.source.asked)) == 5
        assert seen.source.summaries <= 1

    await watched(look, many)
