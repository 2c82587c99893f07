"""What is said of troubles as they come, get worse, go on and end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count

from certplane.broker.notify.model import FleetState, Message, MessageKind, Told, Trouble
from certplane.broker.notify.planning import SETTLED, Seen, digest, plan
from certplane.broker.notify.settings import RulesSettings, WeeklyTime
from certplane.runtime.health import HealthWord
from tests.fakes.clock import ManualClock

MINUTE = timedelta(minutes=1)
DNS = Trouble("DNS_UNAVAILABLE ns2.example.test", HealthWord.FAILING, 3, 2)


@dataclass
class Story:
    """One notifier's troubles over time; `look` says what it is told."""

    rules: RulesSettings = field(default_factory=RulesSettings)
    clock: ManualClock = field(default_factory=ManualClock)
    told: dict[str, Told] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    ids: count = field(default_factory=count)

    def look(self, *troubles: Trouble, after: timedelta = timedelta()) -> list[Message]:
        self.clock.advance(after)
        planned = plan(
            "oncall",
            self.rules,
            {trouble.cause: trouble for trouble in troubles},
            self.told,
            seen=self.seen,
            fleet=FleetState(),
            now=self.clock.now(),
            new_id=lambda: f"message-{next(self.ids)}",
        )
        assert bool(planned) == bool(planned.messages or planned.told or planned.over)
        for over in planned.over:
            del self.told[over.cause]
        self.told |= {told.cause: told for told in planned.told}
        return list(planned.messages)

    def kinds(self, *troubles: Trouble, after: timedelta = timedelta()) -> list[str]:
        return [message.kind.value for message in self.look(*troubles, after=after)]


def test_a_trouble_is_told_once_it_lasts() -> None:
    """What passes within `after` is never told, and one that comes back begins anew."""
    story = Story()
    assert story.kinds(DNS) == []
    assert story.kinds(after=MINUTE) == []
    assert story.kinds(DNS, after=MINUTE) == []
    assert story.kinds(DNS, after=MINUTE) == []
    (message,) = story.look(DNS, after=MINUTE)
    assert (message.kind, message.notifier, message.troubles) == (MessageKind.OPENED, "oncall", (DNS,))
    assert story.kinds(DNS, after=MINUTE) == []


def test_one_that_is_old_already_is_told_at_once() -> None:
    """A broker that takes over begins no new wait where it is known since when a trouble is there."""
    story = Story()
    (message,) = story.look(replace(DNS, since=story.clock.now() - 2 * MINUTE))
    assert message.kind is MessageKind.OPENED


def test_worse_is_told_at_once_and_better_is_not() -> None:
    """A worse health, or ten times as many certificates."""
    story = Story(RulesSettings(after=timedelta()))
    assert story.kinds(DNS) == ["opened"]
    assert story.kinds(replace(DNS, certificate_count=29)) == []
    assert story.kinds(replace(DNS, certificate_count=30)) == ["worse"]
    overdue = replace(DNS, word=HealthWord.OVERDUE)
    assert story.kinds(overdue) == ["worse"]
    assert story.kinds(DNS) == []
    assert story.kinds(overdue) == []


def test_a_trouble_that_goes_on_is_told_again_each_day() -> None:
    """Counted from what was said last; without `repeat` never."""
    story = Story(RulesSettings(after=timedelta()))
    assert story.kinds(DNS) == ["opened"]
    assert story.kinds(DNS, after=timedelta(hours=23)) == []
    assert story.kinds(DNS, after=timedelta(hours=1)) == ["still"]
    assert story.kinds(DNS, after=timedelta(hours=23)) == []
    quiet = Story(RulesSettings(after=timedelta(), repeat=timedelta()))
    assert quiet.kinds(DNS) == ["opened"]
    assert quiet.kinds(DNS, after=timedelta(days=30)) == []


def test_the_end_is_told_when_it_has_settled() -> None:
    """A retry that seems to help for some minutes is no end."""
    story = Story(RulesSettings(after=timedelta()))
    begin = story.clock.now()
    story.look(DNS)
    assert story.kinds(after=MINUTE) == []
    assert story.kinds(DNS, after=MINUTE) == []
    assert story.kinds(after=MINUTE) == []
    (message,) = story.look(after=SETTLED)
    assert message.kind is MessageKind.OVER
    (trouble,) = message.troubles
    assert (trouble.cause, trouble.since, trouble.certificate_count) == (DNS.cause, begin, 0)
    assert story.told == {}
    assert story.kinds(after=SETTLED) == []


def test_who_wants_no_end_is_told_none() -> None:
    """It is over all the same: the next one is told as a new one."""
    story = Story(RulesSettings(after=timedelta(), over=False))
    story.look(DNS)
    story.look()
    assert story.kinds(after=SETTLED) == []
    assert story.kinds(DNS) == ["opened"]


def test_many_at_once_are_one_message() -> None:
    """Eleven or more that begin together, or end together: the worst first, the others counted."""
    story = Story(RulesSettings(after=timedelta()))
    few = [replace(DNS, cause=f"RELOAD {number}.service") for number in range(10)]
    assert story.kinds(*few) == ["opened"] * 10
    flood = [Trouble(f"DNS {number}", HealthWord.FAILING, number, 1) for number in range(1, 300)]
    flood.append(Trouble("worst", HealthWord.EXPIRED, 1, 1))
    (message,) = story.look(*few, *flood)
    assert (message.kind, message.trouble_count, len(message.troubles)) == (MessageKind.OPENED, 300, 20)
    assert [trouble.cause for trouble in message.troubles[:3]] == ["worst", "DNS 299", "DNS 298"]
    story.look(*few)
    (message,) = story.look(*few, after=SETTLED)
    assert (message.kind, message.trouble_count) == (MessageKind.OVER, 300)


def test_no_more_than_a_thousand_are_told_at_a_time() -> None:
    """The worst; another one when one has ended."""
    story = Story(RulesSettings(after=timedelta()))
    flood = [Trouble(f"DNS {number}", HealthWord.FAILING, number, 1) for number in range(1, 1002)]
    (message,) = story.look(*flood)
    assert (message.trouble_count, len(story.told)) == (1000, 1000)
    story.look(*flood[:-1])
    assert [message.kind.value for message in story.look(*flood[:-1], after=SETTLED)] == ["over"]
    assert [message.troubles[0].cause for message in story.look(*flood[:-1])] == ["DNS 1"]


def test_a_digest_has_what_there_is() -> None:
    """The worst first."""
    other = replace(DNS, cause="other", word=HealthWord.EXPIRED)
    fleet = FleetState(7)
    message = digest("post", [DNS, other], fleet=fleet, now=ManualClock().now(), new_id=lambda: "1")
    assert (message.kind, message.troubles, message.trouble_count) == (MessageKind.DIGEST, (other, DNS), 2)
    assert message.fleet == fleet


def test_a_moment_of_the_week() -> None:
    """The last one that is past, the very moment included."""
    monday = WeeklyTime.parse("monday 08:30")
    at = datetime.fromisoformat
    cases = {
        "2026-11-23T08:30:00Z": "2026-11-23T08:30:00Z",
        "2026-11-23T08:29:59Z": "2026-11-16T08:30:00Z",
        "2026-11-29T23:59:59Z": "2026-11-23T08:30:00Z",
    }
    for now, latest in cases.items():
        assert monday.latest(at(now)) == at(latest)
    assert WeeklyTime.parse("never").latest(at("2026-11-23T08:30:00Z")) is None
    assert (str(monday), str(WeeklyTime(None))) == ("monday 08:30", "never")
