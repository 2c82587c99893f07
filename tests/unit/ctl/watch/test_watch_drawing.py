"""What is on the screen for what is known and what was pressed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.ctl.watch.drawing import Drawing, Place
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import (
    FLEET,
    HELP,
    INCIDENTS,
    ROLLOUTS,
    SUMMARY,
    Line,
    Lines,
    Page,
    PageKind,
    Question,
    Topic,
    questions,
)
from certplane.ctl.watch.screen import Screen, press
from certplane.ctl.watch.summary import summary_of
from certplane.ctl.watch.viewport import Viewport
from certplane.runtime.terminal import Style, text_width
from certplane.v1 import fleet_pb2, renewal_pb2
from tests.support.watched_fleet import NOW, a_change, an_event, an_order, certificate, host, snapshot, troubled_fleet


def known(*hosts: renewal_pb2.Host) -> Known:
    made = Known("https://broker.example.test:8443")
    for message in snapshot(*(hosts or troubled_fleet())):
        made.fleet.apply(message)
    made.heard = NOW
    return made


def texts(lines: Lines) -> list[str]:
    return [lines.line(number).text for number in range(len(lines))]


def body(screen: Screen, what: Known, width: int = 80) -> Lines:
    return Drawing().body(screen, what, lambda: NOW, width)


def page(kind: PageKind, **fields: str) -> Screen:
    return Screen().opened(Page(kind, **fields))


def find(lines: Lines, text: str) -> Line:
    (found,) = [lines.line(number) for number in range(len(lines)) if text in lines.line(number).text]
    return found


def top(what: Known, screen: Screen | None = None, width: int = 80, height: int = 24) -> list[str]:
    return [each.text for each in Drawing().top(screen or Screen(), what, NOW, width, height)]


def test_the_five_questions_stand_above_the_hosts() -> None:
    """Each has a line with its number, zero as well, and the first of its answers."""
    lines = top(known())
    assert [line[:8].strip() for line in lines[1:]] == ["HURT NOW", "NEXT 24h", "CAUSES", "CHANGED", "MISSING"]
    assert "HURT NOW 4  app170 shop EXPIRED 13h ago; app136 shop EXPIRED 11h ago" in lines[1]
    assert "2 (1 won't heal)  lb3 lb WONT_HEAL 2h 0m" in lines[2]
    assert "2 x EXPIRED DNS_UNAVAILABLE ns2.example.org" in lines[3]
    assert "never1.example.test never came; quiet1.example.test 3d ago" in lines[5]
    well = top(known(host("a", certificate())))
    assert well[1].rstrip() == "HURT NOW 0"


def test_no_colour_without_its_word() -> None:
    """What is red or yellow says in words what it is, for those who see none."""
    lines = body(Screen(), known())
    for number in range(len(lines)):
        (word, style), *_ = lines.line(number).spans
        assert (style is Style.GOOD) == (word.strip() in {"OK", "-"}), word


@pytest.mark.parametrize("width", [20, 40, 80, 132, 250])
@pytest.mark.parametrize("height", [5, 9, 12, 24])
def test_every_page_fits_every_width(width: int, height: int) -> None:
    """No line is wider than the screen once it is fitted, rows of a table are as wide as their titles, none is folded."""
    what = known()
    what.trouble = "the broker at https://broker.example.test:8443 can't be reached; check that it runs"
    what.answers[Question(Topic.HOST, "lb3.example.test")] = Answer((troubled_fleet()[4],))
    drawing = Drawing()
    for screen in (
        Screen(),
        page(PageKind.SUMMARY),
        page(PageKind.HELP),
        page(PageKind.CAUSE, health="FAILING", cause="RELOAD postfix.service"),
        page(PageKind.HOST, host="lb3.example.test"),
        page(PageKind.CERTIFICATE, host="lb3.example.test", certificate="lb", profile="lb"),
    ):
        lines = drawing.body(screen, what, lambda: NOW, width)
        place = Place(0, 5, len(lines))
        others = [*drawing.top(screen, what, NOW, width, height), *drawing.bottom(screen, what, NOW, place, width)]
        for each in (*others, *(lines.line(number) for number in range(len(lines)))):
            assert text_width(each.fitted(width).text) <= width
        if screen.page == FLEET:
            assert lines.header is not None
            assert {text_width(text) for text in texts(lines)} == {text_width(lines.header.text)} <= {*range(width + 1)}
            assert len(drawing.top(screen, what, NOW, width, height)) < height - 2 or height < 9


def test_on_twenty_columns_health_and_name_are_left() -> None:
    """The two things that one must know."""
    assert texts(body(Screen(), known(), 20))[0] == "EXPIRED app170      "


def test_what_is_cut_says_so() -> None:
    """At the end of a line, in one column, whichever span it falls into."""
    line = Line((("abc", Style.BAD), ("defgh", Style.PLAIN), ("ij", Style.DIM)))
    assert [line.fitted(width).text for width in (10, 8, 5, 3, 2)] == ["abcdefghij", "abcdefg>", "abcd>", "ab>", "a>"]


def test_from_the_summary_to_the_cause_to_the_host_to_the_certificate() -> None:
    """Enter leads down, Escape back up; each page is about what stood on the line."""
    what, screen = known(), press(Screen(), "s", None)
    screen = press(screen, "enter", find(body(screen, what), "RELOAD postfix"))
    assert screen.page == Page(PageKind.CAUSE, health="FAILING", cause="RELOAD postfix.service")
    lines = body(screen, what)
    assert "mend RELOAD postfix.service" in "".join(texts(lines))
    screen = press(screen, "enter", find(lines, "FAILING        mail1"))
    assert screen.page == Page(PageKind.HOST, "mail1.example.test")
    (asked,) = questions(screen.page)
    what.answers[asked] = Answer((host("mail1", certificate("mail", renewal_pb2.HEALTH_FAILING, cause="RELOAD x")),))
    screen = press(screen, "enter", find(body(screen, what), "mail serving, ends in"))
    assert screen.page == Page(PageKind.CERTIFICATE, "mail1.example.test", "mail", "mail")
    assert [each.topic for each in questions(screen.page)] == [Topic.HOST, Topic.ORDERS, Topic.EVENTS]
    for kind in (PageKind.HOST, PageKind.CAUSE, PageKind.SUMMARY, PageKind.FLEET, PageKind.FLEET):
        screen = press(screen, "escape", None)
        assert screen.page.kind is kind


def test_a_cause_shows_the_certificates_that_it_affects() -> None:
    """And not a worse one of the same host, whose cause is another."""
    worse = certificate("shop", renewal_pb2.HEALTH_EXPIRED, cause="NAMES_NOT_ALLOWED shop")
    what = known(host("a", worse, certificate("mail", renewal_pb2.HEALTH_FAILING, cause="RELOAD postfix.service")))
    (row,) = [
        text
        for text in texts(body(page(PageKind.CAUSE, health="FAILING", cause="RELOAD postfix.service"), what))
        if " a " in text
    ]
    assert row.split()[:3] == ["FAILING", "a", "mail"]
    assert texts(body(Screen(), what))[0].split()[:3] == ["EXPIRED", "a", "shop"]


def test_a_certificate_with_its_orders_and_events() -> None:
    """What it is, what to do, what is tried for it and what was recorded of it, on one page."""
    what = known()
    shown = page(PageKind.CERTIFICATE, host="app170.example.test", certificate="shop", profile="shop")
    assert sum("asking the broker" in text for text in texts(body(shown, what))) == 3
    for asked, message in zip(questions(shown.page), (troubled_fleet()[0], an_order(), an_event("ran")), strict=True):
        what.answers[asked] = Answer((message,))
    text = "\n".join(texts(body(shown, what)))
    for part in (
        "EXPIRED: DNS_UNAVAILABLE ns2.example.org: the record",
        "mend DNS_UNAVAILABLE ns2.example.org",
        "02:52:01Z validating shop.example.test",
        "waits for DNS",
        "next try 2m",
        "certificate_issued",
        "certificate_issued ran",
    ):
        assert part in " ".join(text.split()), part


def test_events_and_orders_of_all_say_whose_they_are() -> None:
    """On a host's page its name would only take room; a long event has what it says below."""
    what = known()
    for kind, message in ((PageKind.EVENTS, an_event("ran " * 30)), (PageKind.ORDERS, an_order())):
        for fields in ({}, {"host": "app170.example.test"}):
            shown = page(kind, **fields)
            what.answers[questions(shown.page)[0]] = Answer((message,))
            lines = texts(body(shown, what))
            assert ("app170.example.test" in "".join(lines)) == (not fields)
            assert len(lines) > 1


def test_what_an_answer_lacks_is_said_where_it_would_stand() -> None:
    """An older broker, a role that isn't enough: the rest of the page is there, and what was known before."""
    what = known()
    shown = page(PageKind.EVENTS)
    (asked,) = questions(shown.page)
    what.answers[asked] = Answer((an_event("before"),), "ROLE_REQUIRED: not for this identity; use another one")
    lines = texts(body(shown, what))
    assert "ROLE_REQUIRED" in lines[0]
    assert "before" in lines[-1]
    what.answers[asked] = Answer()
    assert texts(body(shown, what)) == ["  none"]


def test_a_service_is_shown_by_what_the_summary_says() -> None:
    """It is no host, so the broker refuses to show it as one."""
    what = known()
    what.summary = fleet_pb2.SummarizeFleetResponse(hurt_count=1)
    what.summary.hurt.add(host="api.example.test", certificate=certificate("c-1", renewal_pb2.HEALTH_EXPIRED))
    shown = press(page(PageKind.SUMMARY), "enter", find(body(page(PageKind.SUMMARY), what), "api.example.test"))
    what.answers[Question(Topic.HOST, "api.example.test")] = Answer(error="there is no host api.example.test")
    text = "\n".join(texts(body(shown, what)))
    assert "EXPIRED" in text
    assert "no host" not in text


def test_the_brokers_summary_is_shown_once_there_is_one() -> None:
    """It has what the watch lacks: services, what changed, issuers, orders."""
    what = known()
    what.summary = fleet_pb2.SummarizeFleetResponse(hurt_count=7, open_order_count=3, troubled_order_count=1)
    what.summary.changes.append(a_change())
    what.summary.issuers.add(issuer="default", reason="accountDoesNotExist")
    lines = top(what)
    assert lines[1].rstrip() == "HURT NOW 7"
    assert "02:11Z policy_loaded alice.example.test: +store.example.test (shop)" in lines[4]
    assert lines[6] == "ISSUERS  default: accountDoesNotExist"
    shown = page(PageKind.SUMMARY)
    assert press(shown, "enter", find(body(shown, what), "3 open, 1 in trouble")).page.kind is PageKind.ORDERS


def test_the_summary_of_the_rows_misses_nobody() -> None:
    """Where the broker is older, the hosts of the watch answer all but what changed."""
    summary = summary_of(list(known().fleet.hosts.values()), NOW)
    assert (summary.host_count, summary.connected_host_count) == (len(troubled_fleet()), len(troubled_fleet()) - 2)
    assert (summary.hurt_count, summary.next_count, summary.next_wont_heal_count) == (4, 2, 1)
    assert [each.host.split(".")[0] for each in summary.hurt] == ["app170", "app136", "web1", "lb9"]
    failing = [each for each in summary.causes if each.health == renewal_pb2.HEALTH_FAILING]
    assert [(each.cause, each.certificate_count) for each in failing] == [
        ("DNS_UNAVAILABLE ns2.example.org", 16),
        ("RELOAD postfix.service", 1),
    ]
    assert [each.host.split(".")[0] for each in summary.missing] == ["never1", "quiet1"]


def test_a_lost_connection_is_told_with_the_last_moment_it_was_there() -> None:
    """The fleet as it was stays, and nobody takes it for the present."""
    what = known()
    what.trouble, what.again = "the broker can't be reached; check that it runs", NOW + timedelta(seconds=9)
    what.heard = NOW - timedelta(minutes=2)
    lines = top(what)
    assert lines[0].endswith("AWAY 03:00:01Z")
    assert lines[1] == "the broker can't be reached; check that it runs; again at 03:02:10Z"
    assert top(what, width=40, height=12)[1] == "the broker can't be reached; check that>"
    assert top(Known("x"))[0].rstrip().endswith("wait 03:02:01Z")


def test_the_last_state_stays_on_the_terminal() -> None:
    """The summary, the worst hosts and the totals; of many hosts how many more; nothing before anything was known."""
    lines = Drawing().leaving(FLEET, known(), NOW, 80, 5)
    assert lines[0].startswith("HURT NOW 4")
    assert [line.split()[1] for line in lines[6:11]] == ["app170", "app136", "web1", "lb9", "lb3"]
    assert lines[-3] != ""
    assert "more that aren't OK" in lines[-2]
    assert lines[-1].startswith(f"{len(troubled_fleet())} hosts, ")
    assert lines[-1].endswith("as of 03:02:01Z")
    assert Drawing().leaving(FLEET, Known("x"), NOW, 80, 5) == []


def test_a_filter_that_matches_nothing_says_so() -> None:
    """And how to be rid of it is in the keys."""
    what, screen = known(), Screen().filtered("no such host")
    lines = body(screen, what)
    assert len(lines) == 0
    assert "16 FAILING" not in Drawing().bottom(Screen(), what, NOW, Place(0, 9, 58), 40)[0].text
    assert "2 EXPIRED, 1 REVOKED_IN_USE" in Drawing().bottom(Screen(), what, NOW, Place(0, 9, 58), 200)[0].text
    said = [each.text for each in Drawing().bottom(screen, what, NOW, Place(0, 0, 0), 80)]
    assert said[0].startswith("nothing matches  filter: no such host")
    assert press(screen, "escape", None) == Screen()


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        pytest.param("s", Screen().opened(SUMMARY), id="summary"),
        pytest.param("question_mark", Screen().opened(HELP), id="help"),
        pytest.param("f", Screen(), id="fleet"),
        pytest.param("a", Screen().opened(Page(PageKind.EVENTS)), id="events-of-all"),
        pytest.param("r", Screen().opened(Page(PageKind.ORDERS)), id="orders-of-all"),
        pytest.param("R", Screen().opened(ROLLOUTS), id="rollouts"),
        pytest.param("i", Screen().opened(INCIDENTS), id="incidents"),
        pytest.param("x", Screen(), id="a-key-that-means-nothing"),
        pytest.param("enter", Screen(), id="enter-on-nothing"),
    ],
)
def test_keys(key: str, changed: Screen) -> None:
    """Each key does one thing from every page; one that means nothing does nothing."""
    assert press(Screen(), key, None) == changed


@pytest.mark.parametrize(
    ("keys", "text", "typing"),
    [
        pytest.param("ab", "ab", True, id="letters"),
        pytest.param(["q", "s", "space", "slash", "o"], "qs/o", True, id="keys-of-the-list-are-letters"),
        pytest.param(["a", "b", "backspace"], "a", True, id="backspace"),
        pytest.param(["a", "ctrl+u", "b"], "b", True, id="ctrl-u"),
        pytest.param(["a", "enter"], "a", False, id="enter-keeps-it"),
        pytest.param(["a", "escape"], "", False, id="escape-clears-it"),
        pytest.param(["backspace"], "", False, id="backspace-of-nothing-ends-it"),
        pytest.param(["up", "f1"], "", True, id="no-letters"),
    ],
)
def test_typing_a_filter(keys: str | list[str], text: str, typing: bool) -> None:
    """Behind `/` each key is a letter, until Enter or Esc."""
    characters = {"slash": "/"}
    screen = press(Screen(), "slash", None, "/")
    for key in keys:
        screen = press(screen, key, None, key if len(key) == 1 else characters.get(key))
    assert (screen.view.text, screen.typing) == (text, typing)
    said = Drawing().bottom(screen, known(), NOW, Place(0, 1, 1), 80)[-1].text
    assert said.startswith("/") is typing
    assert press(screen, "ctrl+c", None).left


def test_the_way_back_stays_short() -> None:
    """A page that is open already is gone back to, not opened again on top."""
    screen = Screen()
    for _ in range(5):
        screen = press(press(screen, "s", None), "a", None)
    assert len(screen.views) == 3


def test_the_cursor_stays_with_its_line() -> None:
    """What somebody looks at stays under the cursor while others come and go above; on the first line it stays there."""
    view = Viewport()
    view.settle(["a", "b", "c"], 2, 1)
    assert view.cursor == 1  # before anybody moves it is on the first line that opens something
    view.settle(["new", "a", "b", "c"], 2)
    view.move(1, ["new", "a", "b", "c"], 2)
    view.move(-1, ["new", "a", "b", "c"], 2)
    view.settle(["newest", "new", "a", "b", "c"], 2)
    assert (view.cursor, view.first) == (0, 0)
    view.move(2, ["new", "a", "b", "c"], 2)
    view.settle(["newer", "new", "a", "b", "c"], 2)
    assert (view.cursor, view.first) == (3, 2)
    view.settle(["c"], 2)
    assert (view.cursor, view.first) == (0, 0)
    view.settle([], 2)
    assert (view.cursor, view.first) == (0, 0)


def test_nobody_is_called_well_before_the_fleet_is_known() -> None:
    """A watch that was begun while the broker is away answers none of the five questions."""
    known = Known("https://broker.example.test")
    known.trouble = "the broker can't be reached"
    screen = Screen().opened(SUMMARY)
    lines = Drawing().body(screen, known, lambda: NOW, 80)
    assert [lines.line(number).text for number in range(len(lines))] == [
        "nothing is known yet: the broker hasn't told of the fleet"
    ]
    bottom = Drawing().bottom(Screen(), known, NOW, Place(0, 0, 0), 80)
    assert bottom[0].text == "none  worst first  nothing is known yet"
