"""Which Python runs the benchmark and the programs: version, how it was built, how fast plain Python is in it.

An interpreter that was built by a profile (PGO) runs plain Python a third to three quarters faster than one that
wasn't, so figures of different interpreters don't compare. `scripts/bench --python PROGRAM` chooses one.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path
from typing import Final

_YES, _NO = "built by a profile (PGO)", "built without a profile (no PGO)"
_UNKNOWN = "built by a profile or not: sysconfig tells of another build than this program's (Debian's has PGO)"
_TURNS: Final = 30_000


def describe() -> str:
    """One line."""
    plain = f"{_plain_ms():.0f} ms of processor time for a loop of plain Python"
    return f"Python {sys.version.split()[0]}, {_profile()}; {plain}"


def profile_of(arguments: str, flags: str, *, about_another_build: bool) -> str:
    """What its build says of a profile.

    Args:
        arguments: of `configure` (`CONFIG_ARGS`).
        flags: of the compiler (`PY_CORE_CFLAGS`).
        about_another_build: Debian's program is linked statically, and sysconfig tells of the library that is built
            beside it; only the program is built by a profile.
    """
    if "--enable-optimizations" in arguments or "-fprofile-use" in flags:
        return _YES
    return _UNKNOWN if about_another_build else _NO


def _profile() -> str:
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    maps = Path("/proc/self/maps")
    linked = not maps.exists() or "/libpython" in maps.read_text()
    return profile_of(
        arguments,
        str(sysconfig.get_config_var("PY_CORE_CFLAGS") or ""),
        about_another_build="--enable-shared" in arguments and not linked,
    )


def _plain_ms() -> float:
    """Dictionaries, objects, calls and texts, as our own code is made of; the least of five."""

    class Thing:
        def __init__(self, number: int) -> None:
            self.number = number

        def name(self) -> str:
            return f"thing-{self.number}"

    def turn() -> float:
        begun = time.thread_time()
        found: dict[str, Thing] = {}
        for number in range(_TURNS):
            thing = Thing(number)
            found[thing.name()] = thing
        assert sum(thing.number for thing in found.values()) == _TURNS * (_TURNS - 1) // 2
        return (time.thread_time() - begun) * 1e3

    return min(turn() for _ in range(5))
