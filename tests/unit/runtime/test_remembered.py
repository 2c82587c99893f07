"""`Remembered`: bounded in entries, octets and by owner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from certplane.runtime.remembered import Remembered


def test_a_value_is_the_last_one_of_its_key() -> None:
    """Until it is forgotten."""
    memory: Remembered[str, int] = Remembered(entries=2, octets=100, of_one_owner=2)
    memory.put("a", 1, 10)
    memory.put("a", 2, 20)
    assert (memory.get("a"), memory.octets, len(memory)) == (2, 20, 1)
    memory.forget("a")
    memory.forget("a")
    assert (memory.get("a"), memory.octets, len(memory)) == (None, 0, 0)


def test_what_is_larger_than_the_memory_is_not_kept() -> None:
    """Nor what is larger than its owner's share; neither drives out what others have there."""
    memory: Remembered[str, int] = Remembered(entries=10, octets=100, of_one_owner=5)
    memory.put("a", 1, 10, "web1")
    for octets in (51, 101):
        memory.put("b", 1, octets, "web2")
        assert (memory.get("a"), memory.get("b"), len(memory)) == (1, None, 1)


def test_an_owner_of_large_values_keeps_those_of_others() -> None:
    """Few of them would fill the memory: a caller's CSRs may be as long as it likes, up to what is read."""
    memory: Remembered[str, int] = Remembered(entries=100, octets=100, of_one_owner=50)
    memory.put("a", 1, 10, "web1")
    for number in range(20):
        memory.put(f"b{number}", 1, 25, "web2")
    assert memory.get("a") == 1
    assert (memory.octets, len(memory)) == (60, 3)


def test_nothing_is_left_of_a_memory_that_is_cleared() -> None:
    """And it is filled again as a new one."""
    memory: Remembered[str, int] = Remembered(entries=2, octets=100, of_one_owner=1)
    for key in "ab":
        memory.put(key, 1, 50, key)
    memory.clear()
    assert (memory.get("a"), memory.octets, len(memory)) == (None, 0, 0)
    for key in "ab":
        memory.put(key, 2, 50, key)
    assert (memory.get("a"), memory.get("b"), memory.octets) == (2, 2, 100)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_bounds_hold_whatever_happens(steps: list[tuple[int, int, str, bool]]) -> None:
    """Entries, octets and shares; what is there is what was put last, and an owner's newest outlives another's flood."""
    memory: Remembered[int, tuple[int, str]] = Remembered(entries=5, octets=100, of_one_owner=3)
    said: dict[int, tuple[int, str]] = {}
    for key, octets, owner, drop in steps:
        if drop:
            memory.forget(key)
            said.pop(key, None)
        else:
            memory.put(key, (octets, owner), octets, owner)
            said[key] = (octets, owner)
        kept = {key: value for key in range(10) if (value := memory.get(key)) is not None}
        assert kept.items() <= said.items()
        assert len(memory) == len(kept) <= 5
        assert memory.octets == sum(value[0] for value in kept.values()) <= 100
        assert all(sum(value[1] == owner for value in kept.values()) <= 3 for owner in "abc")
        assert all(sum(value[0] for value in kept.values() if value[1] == owner) <= 60 for owner in "abc")
