"""When moved windows are an incident."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.incidents.detect import TOGETHER, detect, explanation_of, incident_id_of
from certplane.broker.incidents.model import Incident
from certplane.broker.renewal.model import WindowMove

NOW = datetime(2026, 3, 19, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
OPEN = Incident("acme-20260319", "acme", NOW)


def move(number: int, after: timedelta = timedelta(), issuer: str = "acme", **more: object) -> WindowMove:
    values = {"explanation_url": "", "forward": True, **more}
    time = NOW + after
    return WindowMove(
        f"certificate-{number}",
        f"web{number}",
        issuer,
        time,
        time - 2 * HOUR,
        time - HOUR,
        time + HOUR,
        **values,  # type: ignore[arg-type]
    )


def moves(count: int, apart: timedelta = timedelta(minutes=1), issuer: str = "acme") -> list[WindowMove]:
    return [move(number, number * apart, issuer) for number in range(count)]


def test_fewer_than_policy_says_are_none() -> None:
    """Each of those is renewed sooner, as its own plan says."""
    assert detect(moves(9), [], 10) == []
    assert detect([], [], 1) == []


def test_many_of_one_ca_are_one() -> None:
    """In the order in which they were heard of, whatever order they are given in."""
    (found,) = detect(reversed(moves(10)), [], 10)
    assert (found.issuer, found.incident, list(found.moves)) == ("acme", None, moves(10))


def test_each_ca_is_counted_by_itself() -> None:
    """Nine of one and nine of another have nothing in common."""
    assert detect(moves(9) + moves(9, issuer="other"), [], 10) == []
    both = detect(moves(10) + moves(10, issuer="other"), [], 10)
    assert [found.issuer for found in both] == ["acme", "other"]


def test_moves_of_different_days_are_not_together() -> None:
    """A CA that calls back one certificate each few hours has no incident; what is older is left out of one that has."""
    assert detect(moves(10, 3 * HOUR), [], 10) == []
    some = [move(99, -TOGETHER), *moves(10)]
    (found,) = detect(some, [], 10)
    assert list(found.moves) == moves(10)


def test_a_move_of_a_clock_that_was_years_ahead_hides_no_incident() -> None:
    """It is the newest until then, and is kept for as long."""
    (found,) = detect([move(99, 4 * 365 * TOGETHER), *moves(10)], [], 10)
    assert list(found.moves) == moves(10)


def test_what_comes_later_joins_the_open_one() -> None:
    """One is enough, however long after; of another CA it isn't."""
    late = move(77, 9 * TOGETHER)
    (found,) = detect([late], [OPEN], 10)
    assert (found.incident, list(found.moves)) == (OPEN, [late])
    assert detect([move(78, issuer="other")], [OPEN], 10) == []


def test_windows_that_were_put_off_are_none() -> None:
    """A CA may take back what it asked for."""
    assert detect([move(number, forward=False) for number in range(20)], [], 10) == []


def test_a_threshold_of_nothing_is_one() -> None:
    """None of no certificate."""
    (found,) = detect(moves(1), [], 0)
    assert len(found.moves) == 1


@given(st.lists(st.integers(-200, 200), max_size=40), st.integers(1, 12))
def test_what_holds_whatever_the_times(hours: list[int], at_least: int) -> None:
    """An incident has as many as policy says at least, all within a day, each once; times may be of any clock."""
    given_moves = [move(number, hour * HOUR) for number, hour in enumerate(hours)]
    found = detect(given_moves, [], at_least)
    for one in found:
        assert len(one.moves) >= at_least
        assert one.moves[-1].move_time - one.moves[0].move_time < TOGETHER
        assert all(first.move_time <= second.move_time for first, second in pairwise(one.moves))
        assert len({each.certificate_id for each in one.moves}) == len(one.moves)
    times = [each.move_time for each in given_moves]
    most = max((sum(end - TOGETHER < time <= end for time in times) for end in times), default=0)
    assert bool(found) == (most >= at_least)


def test_where_it_is_explained_is_what_most_say() -> None:
    """What was known first stays; without any there is none."""
    said = [
        move(1, explanation_url="https://a.example"),
        move(2),
        *(move(n, explanation_url="https://b.example") for n in (3, 4)),
    ]
    assert explanation_of(said) == "https://b.example"
    assert explanation_of(said, "https://known.example") == "https://known.example"
    assert explanation_of([move(1)]) == ""
    assert explanation_of([]) == ""


def test_ids_can_be_typed() -> None:
    """The issuer and the day; a number from the second one on; whatever the issuer is called."""
    assert incident_id_of("letsencrypt", "20260319", 1) == "letsencrypt-20260319"
    assert incident_id_of("letsencrypt", "20260319", 2) == "letsencrypt-20260319-2"
    assert incident_id_of("my CA/\N{LATIN SMALL LETTER E WITH ACUTE}", "20260319", 1) == "my_CA__-20260319"
    assert len(incident_id_of("x" * 200, "20260319", 50)) <= 64
