"""How long a rollout's rings are watched, and when it ends if all goes well. Pure.

A deadline shortens the bake times of all rings that are still to be watched by one share, so that what is left fits
before it: openly (`Ring.bake_cut`), and never by leaving a ring out or releasing one before the ring before it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.rollouts.model import Ring, RingSpec, RingState

RING_TIME: Final = timedelta(minutes=2)
"""What a ring takes from its release until its hosts are done, before any has shown how long that is."""
_SECOND: Final = timedelta(seconds=1)


def ring_time(rings: Sequence[Ring]) -> timedelta:
    """How long a ring takes that is still to be released: as the slowest one before it, else a guess."""
    took = [ring.done_time - ring.release_time for ring in rings if ring.done_time and ring.release_time]
    return max([each for each in took if each > timedelta()], default=RING_TIME)


def cut_bakes(
    specs: Sequence[RingSpec],
    rings: Sequence[Ring],
    now: datetime,
    deadline: datetime | None,
    issued_by: datetime | None,
) -> dict[int, timedelta]:
    """How long each ring will be watched that isn't yet, by its place.

    Args:
        specs: The rings as they were asked for.
        rings: How far they are.
        now: The time.
        deadline: By when all should be done, if there is such a time.
        issued_by: When the last certificate will be issued, if that is known: nothing is done before.
    """
    to_bake = [n for n, ring in enumerate(rings) if ring.state in (RingState.WAITING, RingState.RELEASED)]
    bakes = {n: specs[n].bake for n in to_bake}
    wanted = sum(bakes.values(), timedelta())
    if deadline is None or not wanted:
        return bakes
    begin = max(now, issued_by) if issued_by is not None else now
    # The ring that is about to be watched has taken its time; those after it haven't.
    left = deadline - begin - ring_time(rings) * max(0, len(to_bake) - 1)
    if left >= wanted:
        return bakes
    share = max(left, timedelta()) / wanted
    return {n: timedelta(seconds=bake * share // _SECOND) for n, bake in bakes.items()}


def expected_end(
    specs: Sequence[RingSpec],
    rings: Sequence[Ring],
    now: datetime,
    deadline: datetime | None,
    issued_by: datetime | None,
) -> datetime:
    """When the last ring is watched to its end, if all goes well; arguments as of `cut_bakes`."""
    bakes = cut_bakes(specs, rings, now, deadline, issued_by)
    one = ring_time(rings)
    end = now
    for n, ring in enumerate(rings):
        if ring.state is RingState.BAKING and ring.bake_until is not None:
            end = max(end, ring.bake_until)
        elif ring.state is not RingState.DONE:
            last = n == len(rings) - 1
            # Rings are filled as certificates come; only the last one needs them all.
            if last and issued_by is not None:
                end = max(end, issued_by)
            end += one + bakes.get(n, timedelta())
    return end
