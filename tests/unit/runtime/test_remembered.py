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
    """And drives nothing else out but what is older."""
    memory: Remembered[str, int] = Remembered(entries=9, octets=10, of_one_owner=9)
    memory.put("a", 1, 11)
    assert len(memory) == 0


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
