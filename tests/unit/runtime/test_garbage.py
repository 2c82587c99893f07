"""When Python looks for cycles."""

from __future__ import annotations

import atexit
import gc
import weakref
from collections.abc import Iterator

import pytest

from certplane.runtime import garbage


class Thing:
    """Something that can be in a cycle."""


@pytest.fixture(autouse=True)
def thaw() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_a_start_made_is_looked_at_no_more() -> None:
    """A full collection after it goes through what is new alone."""
    kept = [Thing() for _ in range(1000)]
    garbage.settled()
    left = gc.get_objects()
    assert not any(isinstance(each, Thing) for each in left)
    assert len(kept) == 1000


def test_what_a_start_made_is_freed_all_the_same() -> None:
    """A policy that is replaced, say."""
    thing = Thing()
    seen = weakref.ref(thing)
    garbage.settled()
    del thing
    assert seen() is None


def test_cycles_are_freed_as_ever() -> None:
    """What the work leaves behind after the start."""
    garbage.settled()
    thing = Thing()
    thing.itself = thing  # type: ignore[attr-defined]
    seen = weakref.ref(thing)
    del thing
    gc.collect()
    assert seen() is None


def test_collections_are_seldom_and_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full one at the latest after a million objects more."""
    monkeypatch.setattr(atexit, "register", lambda _call: None)
    garbage.seldom()
    young, middle, old = gc.get_threshold()
    assert young >= 10_000
    assert young * middle * old <= 1_000_000
