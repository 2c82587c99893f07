"""When Python looks for cycles, which holds every thread while it lasts: 0.4 us for each object that it goes through.

Python's own numbers suit a small heap. Of a start they make a hundred and fifty collections of what nearly all stays,
and in a broker with a fleet each full one took 0.2 to 0.3 s, in which no call is answered.

What is made after `settled` is collected as ever: cycles that requests and streams leave are freed after some hundred
thousand new objects more, a million at most between two full collections (about 100 MB if all of it were cycles). A
reload's policy is such: full collections go through it (0.1 s for 100,000 hosts). It isn't frozen too, since whatever
garbage there is at that moment would stay for good.
"""

from __future__ import annotations

import atexit
import gc
from typing import Final

_YOUNG: Final = 10_000
"""New objects that bring the collector on; Python's own number is 700 (2,000 from 3.13 on)."""


def seldom() -> None:
    """For a whole program, at its begin: look seldom, and not thrice at its end for what the process frees anyway.

    The end was an eighth of the processor time of an agent's `run --once` with nothing due.
    """
    gc.set_threshold(_YOUNG, 10, 10)
    atexit.register(gc.freeze)


def settled() -> None:
    """For a service that has started: what there is stays for as long as the process, and isn't looked at any more.

    Modules, statements, the policy, the ledger of identities. What of it is replaced later is freed all the same when
    nobody refers to it. The cycles that a start leaves stay with it, some hundred objects: to look for them would take
    a tenth of the start's time.
    """
    gc.freeze()
