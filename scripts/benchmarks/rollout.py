"""A rollout of a whole large fleet: how long an operator waits until it is created, and what it takes of memory.

A broker with SQLite knows 10,000 hosts with a certificate each, none of which has a stream. An operator creates a
rollout of all of them in three rings; time is that of the call, forecast and writing included. Memory is the broker's
(both processes) half a minute later, when it is in hand and has been looked at several times, above what it was before.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from benchmarks.fleet import MOST, Fleet, Process
from benchmarks.result import Figure, figure
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.loopback import LOOPBACK
from certplane.v1 import fleet_pb2, rollout_pb2, rollout_pb2_grpc

_IN_HAND: Final = 30.0
_Spec: Final = rollout_pb2.RolloutSpec


def measure(folder: Path, *, share: float) -> list[Figure]:
    """Once; `share` makes it smaller."""
    count = max(10, int(MOST * share))
    fleet = Fleet(folder / "fleet", count)
    with fleet.serving() as broker:
        broker.ask(f"certify 0 {count}")
        created, planned, grown = asyncio.run(_create(fleet, broker, count))
    return [
        figure(f"plan of a rollout of {count} certificates, s", [planned], ""),
        figure(f"rollout of {count} certificates, create, s", [created], "<= 5"),
        figure(f"rollout of {count} certificates, memory, MB", [grown / 1e6], "<= 30"),
    ]


async def _create(fleet: Fleet, broker: Process, count: int) -> tuple[float, float, float]:
    """Seconds to create it and to plan it, and octets.

    Raises:
        RuntimeError: it isn't of `count` certificates, or one of them isn't in hand any more.
    """
    pair = KeyPair((fleet.folder / "operator.key").read_bytes(), (fleet.folder / "operator.pem").read_bytes())
    roots = (fleet.folder / "root.pem").read_bytes()
    credentials = channel_credentials(roots, pair)
    rings = [_Spec().rings.add(name=name) for name in ("one", "ten", "rest")]
    rings[0].percent, rings[1].percent, rings[2].rest = 1, 10, True
    spec = _Spec(selection=fleet_pb2.Selection(all=True), action=_Spec.ACTION_RENEW, rings=rings, reason="a bench")
    async with open_channel(f"https://{LOOPBACK}:{fleet.port}", credentials) as channel:
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        await asyncio.sleep(5)  # the index has taken in what was written
        begun = time.perf_counter()
        await stub.PlanRollout(rollout_pb2.PlanRolloutRequest(spec=spec), timeout=120)
        planned = time.perf_counter() - begun
        before = broker.resident
        begun = time.perf_counter()
        answer = await stub.CreateRollout(rollout_pb2.CreateRolloutRequest(spec=spec), timeout=120)
        created = time.perf_counter() - begun
        await asyncio.sleep(_IN_HAND)
        grown = broker.resident - before
        asked = rollout_pb2.GetRolloutRequest(rollout_id=answer.rollout.rollout_id)
        rollout = (await stub.GetRollout(asked, timeout=60)).rollout
        waiting = {each.state: each.certificate_count for each in rollout.item_counts}
        if waiting != {rollout_pb2.RolloutItem.STATE_WAITING: count}:
            raise RuntimeError(f"not all {count} certificates are in hand: {rollout}")
        return created, planned, grown
