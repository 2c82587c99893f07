"""Rollouts and incidents on the full screen: what the pages show, and that they are live."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from certplane.ctl.watch.drawing import Drawing
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import INCIDENTS, ROLLOUTS, Page, PageKind, Question, Topic, questions
from certplane.ctl.watch.rollouts import page_lines
from certplane.errors import Reason, RefusalError
from certplane.runtime.terminal import Style, text_width
from certplane.v1 import budget_pb2, incident_pb2
from tests.support.waiting import until
from tests.support.watched_fleet import NOW, FakeFleetSource
from tests.support.watched_rollouts import Rollout, a_failure, a_rollout, halted
from tests.unit.ctl.watch.test_watch_terminal import Seen, watched

PAGE = Page(PageKind.ROLLOUT, rollout="r-7f3a")
HEARD = Question(Topic.ROLLOUT, rollout="r-7f3a")


def limits() -> budget_pb2.GetBudgetResponse:
    made = budget_pb2.GetBudgetResponse()
    issuer = made.issuers.add(issuer="letsencrypt", waiting_order_count=40, hold_reason="too many requests")
    issuer.waiting_until_time.FromDatetime(NOW + timedelta(hours=2))
    issuer.hold_until_time.FromDatetime(NOW + timedelta(minutes=5))
    limit = issuer.budgets.add(name="new_orders_per_account", amount=300)
    limit.per.FromTimedelta(timedelta(hours=3))
    limit.buckets.add(left=0).next_place_time.FromDatetime(NOW + timedelta(seconds=36))
    issuer.budgets.add(name="certificates_per_name", amount=5)
    return made


def known(rollout: Rollout, budget: budget_pb2.GetBudgetResponse | None = None) -> Known:
    made = Known("https://broker.example.test")
    made.keep(HEARD, Answer((rollout,)))
    made.keep(Question(Topic.BUDGET), Answer(() if budget is None else (budget,)))
    return made


def texts(what: Known, page: Page = PAGE, width: int = 80) -> list[str]:
    return [each.fitted(width).text.rstrip() for each in page_lines(what, page, NOW, width)]


def test_a_rollout_that_halted() -> None:
    """Why and what to do, who failed with its own words, rings as bars, the forecast, what the limits leave: in this order."""
    lines = texts(known(halted(), limits()))
    assert lines[0] == "halted: 1 host of ring canary failed"
    assert lines[1] == "  go on, and try again what failed: certplanectl rollout resume r-7f3a --reason"
    failed = lines.index("Failed: 1")
    assert lines[failed + 1] == "  failed  web7.example.test web  reload: nginx: configuration test failed"
    rings = lines.index("Rings")
    assert rings > failed
    assert lines[rings + 1] == f"  canary         failed    {'#' * 12}{'!' * 12} 1 done, 1 failed, cut by 15m"
    assert lines[rings + 2] == f"  10-percent     released  {'#' * 12}{'>' * 12} 1 done, 1 released"
    assert "=" * 15 + "-" * 9 in lines[rings + 3]
    text = " ".join(" ".join(lines[rings:]).split())
    assert "bound by new_orders_per_account of" in text
    assert "letsencrypt: held by its CA for 5m: too many requests" in text
    assert "letsencrypt: 40 orders waiting, the last in 2h 0m" in text
    assert "letsencrypt new_orders_per_account: 0 of 300 per 3h 0m left, the next in 36s" in text
    assert "certificates_per_name" not in text  # of which no place is taken


def test_a_line_of_a_host_opens_it() -> None:
    """As everywhere on the screen; the way back is the fleet's."""
    lines = page_lines(known(halted()), PAGE, NOW, 80)
    (opens,) = [each.opens for each in lines if each.opens is not None]
    assert opens == Page(PageKind.HOST, "web7.example.test")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_any_width(width: int) -> None:
    """Nothing is wider than the screen, and each ring has its name, state, bar and numbers."""
    lines = texts(known(halted(), limits()), width=width)
    assert max(map(text_width, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for said in ("canary", "10-percent", "rest", "released", "10 held, 6 requested", "web7"):
        assert said in text
    bars = [line for line in lines if set(line.strip()) <= set("#!>=-") and line.strip()]
    assert len(bars) == (3 if width < 70 else 0)


def test_words_of_others() -> None:
    """Nothing of them reaches the terminal but its letters."""
    evil = "\x1b]0;title\x07\u202e\n"
    rollout, budget = halted(), limits()
    rollout.rollout_id = rollout.state_reason = rollout.spec.reason = rollout.rings[0].name = evil
    rollout.failed[0].host = rollout.failed[0].reason = rollout.failed[0].certificate_name = evil
    budget.issuers[0].issuer = budget.issuers[0].hold_reason = budget.issuers[0].budgets[0].name = evil
    what = known(rollout, budget)
    what.keep(Question(Topic.ROLLOUTS), Answer((rollout,)))
    incident = incident_pb2.Incident(incident_id=evil, issuer=evil, explanation_url=evil, rollout_id=evil, hosts=[evil])
    what.keep(Question(Topic.INCIDENTS), Answer((incident,)))
    for page in (PAGE, ROLLOUTS, INCIDENTS):
        for width in (20, 80):
            assert all(line.isprintable() for line in texts(what, page, width))


def test_a_ring_that_bakes() -> None:
    """How long still, and what the deadline cut off; late is red, and said on top."""
    rollout = a_rollout()
    rollout.spec.deadline.FromDatetime(NOW + timedelta(hours=4))
    lines = page_lines(known(rollout), PAGE, NOW, 100)
    (ring,) = [each.text for each in lines if "canary  " in each.text]
    assert "2 done, 30m left, cut by 15m" in ring
    assert ("LATE by 1h 0m: the deadline is in 4h 0m", Style.BAD) in [each.spans[0] for each in lines]


def test_before_and_without_an_answer() -> None:
    """It is asked for; a broker that is older says so, and of limits that it doesn't keep nothing is said."""
    assert texts(Known("x")) == ["  asking the broker ..."]
    what = Known("x")
    what.keep(HEARD, Answer((a_rollout(),), "the broker has no rollouts"))
    what.keep(Question(Topic.BUDGET), Answer((), "the broker keeps no budget"))
    lines = texts(what)
    assert lines[:2] == ["  the broker has no rollouts", "running"]
    assert lines[-2:] == ["Limits of the CAs", "  the broker keeps no budget"]


def test_what_is_asked_for_a_page() -> None:
    """A rollout is heard, its limits are asked for."""
    assert questions(PAGE) == (HEARD, Question(Topic.BUDGET))
    assert questions(ROLLOUTS) == (Question(Topic.ROLLOUTS),)
    assert questions(INCIDENTS) == (Question(Topic.INCIDENTS),)
    assert PAGE.title == "rollout r-7f3a"


def test_lists() -> None:
    """Rollouts and incidents, each a line that opens the rollout."""
    what = Known("x")
    what.keep(Question(Topic.ROLLOUTS), Answer((halted(), a_rollout())))
    first = page_lines(what, ROLLOUTS, NOW, 120)[0]
    assert first.text.startswith("  r-7f3a  halted  1 done, 1 failed, 12 held, 6 requested, ends in 5h 0m  ticket 4711")
    assert first.opens == PAGE
    incident = incident_pb2.Incident(
        incident_id="i-1", issuer="le", state=incident_pb2.Incident.STATE_OPEN, certificate_count=9, hurt_count=1,
        rollout_id="r-7f3a", remedy="raise the limit",
    )  # fmt: skip
    what.keep(Question(Topic.INCIDENTS), Answer((incident, incident_pb2.Incident(incident_id="i-2"))))
    lines = page_lines(what, INCIDENTS, NOW, 80)
    assert (lines[0].text, lines[0].opens) == ("i-1 open: 1 HURT, 0 of 9 replaced, 0 in use", PAGE)
    assert any("raise the limit" in each.text for each in lines)
    assert [each.opens for each in lines if each.text.startswith("i-2")] == [None]


def test_answers_that_are_kept() -> None:
    """Of the pages that were opened last: a watch of a week doesn't grow with each that was looked at."""
    what = Known("x")
    for number in range(150):
        what.keep(Question(Topic.HOST, f"h{number}"), Answer())
    assert len(what.answers) == 100
    assert Question(Topic.HOST, "h149") in what.answers


def with_rollout(*rollouts: Rollout) -> Callable[[FakeFleetSource], None]:
    def prepare(source: FakeFleetSource) -> None:
        source.rollouts = list(rollouts)

    return prepare


async def test_a_rollout_is_live() -> None:
    """It opens above the fleet; each message is on the screen at once; a host that failed opens; what stays is the rollout."""

    async def look(seen: Seen) -> None:
        await seen.sees("10-percent     released")
        failed = halted()
        failed.failed[0].CopyFrom(a_failure("app170.example.test"))
        seen.source.rollout_changes.put_nowait(failed)
        await seen.sees("halted: 1 host of ring canary failed")
        assert "app170" in seen.at_cursor
        await seen.press("enter")
        await seen.sees("app170.example.test (app170 in the policy)")
        await until(lambda: not seen.source.rollouts_watched)  # nobody hears what isn't open
        await seen.press("escape")
        await seen.sees("Failed: 1")
        await until(lambda: seen.source.rollouts_watched)
        assert seen.app.shown.page == PAGE

    left = await watched(look, prepare=with_rollout(a_rollout()), page=PAGE)
    assert left[0] == "running"
    assert any(line.startswith("  canary") for line in left)


async def test_from_the_fleet_to_a_rollout_and_back() -> None:
    """R, Enter, Esc, Esc; i shows the incidents."""

    async def look(seen: Seen) -> None:
        await seen.sees("1-15 of 58")
        await seen.press("R")
        await seen.sees("r-7f3a  halted")
        await seen.press("enter")
        await seen.sees("Failed: 1")
        await seen.press("i")
        await seen.sees("none")
        await seen.press("escape", "escape", "escape")
        await seen.sees("1-15 of 58")

    await watched(look, prepare=with_rollout(halted()))


async def test_a_rollout_that_is_refused() -> None:
    """The page says why, and what was known stays."""

    def prepare(source: FakeFleetSource) -> None:
        source.rollouts = RefusalError(Reason.ROLE_REQUIRED, "the role viewer is needed")

    async def look(seen: Seen) -> None:
        await seen.sees("the role viewer is needed")
        seen.source.rollouts = [a_rollout()]
        await seen.press("ctrl+r")
        await seen.sees("10-percent     released")
        seen.source.rollout_changes.put_nowait(RefusalError(Reason.DRAINING, "the broker goes"))
        await seen.sees("the broker goes")
        await seen.sees("10-percent     released")

    await watched(look, prepare=prepare, page=PAGE)


def test_the_last_state_of_a_rollout() -> None:
    """Stays on the terminal, whether the fleet was known or not."""
    assert Drawing().leaving(PAGE, known(halted()), NOW, 80, 5)[0] == "halted: 1 host of ring canary failed"
