"""Which broker is next, after what the one in use did."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

from certplane.rpc.choice import AVOID, BrokerChoice

URLS = ["https://a:1", "https://b:1", "https://c:1"]
SECOND = timedelta(seconds=1)


def choice(urls: list[str] | None = None, seed: int = 1) -> BrokerChoice:
    return BrokerChoice(urls or URLS, random.Random(seed))


def test_hosts_begin_at_all_brokers() -> None:
    """The order of the list is no order: a fleet has one agent.yml."""
    begun = Counter(choice(seed=seed).url for seed in range(300))
    assert min(begun.values()) > 70


def test_the_hosts_of_a_broker_that_fails_spread_over_all_others() -> None:
    """None stays, and the next one doesn't get all of them."""
    gone: Counter[str] = Counter()
    for seed in range(300):
        brokers = choice(seed=seed)
        brokers.url = URLS[0]
        assert brokers.leave(AVOID, 0)
        gone[brokers.url] += 1
    assert set(gone) == {URLS[1], URLS[2]}
    assert min(gone.values()) > 100


def test_a_round_over_all_ends_in_a_wait() -> None:
    """Each is tried once; then the one that has been left alone for longest, with the caller's back-off in between."""
    brokers = choice()
    tried = [brokers.url]
    assert brokers.leave(AVOID, 0)
    tried.append(brokers.url)
    assert brokers.leave(AVOID, 1)
    tried.append(brokers.url)
    assert set(tried) == set(URLS)
    for number in range(6):
        assert not brokers.leave(AVOID, 2 + number)
        assert brokers.url == tried[number % 3], "and not the same one again and again"


def test_a_goodbye_holds_for_the_broker_that_said_it() -> None:
    """Until the time that it named, and no longer."""
    brokers = choice(URLS[:2])
    first = brokers.url
    assert brokers.leave(20 * SECOND, 0)
    second = brokers.url
    assert second != first
    assert not brokers.leave(40 * SECOND, 10)
    assert brokers.url == first, "whose time ends first"
    brokers.url = second
    assert brokers.leave(AVOID, 20)
    assert brokers.url == first


def test_who_has_just_said_goodbye_is_not_the_next_one() -> None:
    """However soon it wants to be asked again: of the other one it is only guessed that it is still away."""
    brokers = choice(URLS[:2])
    assert brokers.leave(AVOID, 0)
    second = brokers.url
    assert not brokers.leave(SECOND, 5)
    assert brokers.url != second


def test_a_goodbye_without_a_wait_evens_streams_out() -> None:
    """All brokers are drawn from, this one included: of a fleet at one broker a third stays."""
    stayed = 0
    for seed in range(300):
        brokers = choice(seed=seed)
        before = brokers.url
        assert brokers.leave(timedelta(), 5)
        stayed += brokers.url == before
    assert 70 < stayed < 130


def test_one_that_answers_is_held_no_longer() -> None:
    """Whatever it did before."""
    brokers = choice(URLS[:2])
    first = brokers.url
    brokers.leave(AVOID, 0)
    brokers.answered(first)
    assert brokers.leave(AVOID, 1)
    assert brokers.url == first


def test_a_lone_broker_is_never_another() -> None:
    """Nothing is tried at once: the waits are those of a single broker."""
    lone = choice(URLS[:1])
    assert not lone.several
    for hold in (timedelta(), SECOND, AVOID):
        assert not lone.leave(hold, 100)
        assert lone.url == URLS[0]
