"""A fleet that renews on and on while its brokers, its agents and its database's primary are lost at random moments.

`scripts/soak --brokers 3 [MINUTES]` runs it: real brokers on a PostgreSQL with a synchronous standby, Pebble, BIND, and
real agents, many in one program. In the end every wish for a renewal has been heard, every order has ended once, no
record is left, and all brokers show the same of every host.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import psutil

from tests.support.crowd import Crowd, crowd_policy
from tests.support.database_servers import ServerPair, server_pair
from tests.support.fleet import LOST, OPERATOR, Fleet
from tests.support.several_brokers import Broker

_IN_A_PROGRAM = 30
_EARLY_AN_HOUR = 3
"""Renewals before their time that an agent makes without waiting by itself (`certplane.agent.renewal.waiting`)."""
_WISHES = 3.0
"""Seconds between two operators' requests."""
_PAUSE = (4.0, 12.0)
"""Seconds between two losses."""
_RESTART = 2.0
"""Seconds until a program that has ended is started again, as by the units of packaging/."""
_STILL = 25.0
"""Longer than a lease."""


class FleetSoak:
    """The world, its losses and its wishes."""

    def __init__(self, fleet: Fleet, servers: ServerPair, crowd: Crowd, rng: random.Random) -> None:
        self.fleet, self.servers, self.crowd = fleet, servers, crowd
        self._rng = rng
        self.lost: Counter[str] = Counter()
        self.wishes = 0
        self._left = Counter(dict.fromkeys(crowd.names, _EARLY_AN_HOUR))
        """By host: how many more it does within the hour without waiting by itself."""
        self._wanted: dict[str, str] = {}
        """By host: the certificate that was in use when the last renewal was asked for."""
        self._busy = {id(broker): asyncio.Lock() for broker in fleet.brokers}

    async def run(self, seconds: float) -> None:
        """Wish and lose for so long."""
        async with asyncio.TaskGroup() as group:
            wishing = group.create_task(self._wish_on(math.ceil(self._left.total() * _WISHES / seconds)))
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(left, self._rng.uniform(*_PAUSE)))
                name, loss = self._rng.choice(self._losses())
                self.lost[name] += 1
                group.create_task(loss())
            wishing.cancel()

    async def settle(self) -> None:
        """Wait until every wish was heard and all is as it is to be."""
        await self.crowd.until_settled(*self._wanted, old=self._wanted)

    async def assert_sound(self) -> None:
        """Every order has ended once, and nothing is left over."""
        await self.fleet.until_settled()
        await self.fleet.assert_nothing_doubled()
        await self.fleet.assert_no_records_left(*(f"www.{name}" for name in self.crowd.names))
        contested = [host.name for host in (await self.fleet.hosts(self.fleet.brokers[0])).values() if host.contested]
        assert contested == []
        self.fleet.assert_no_tracebacks()
        for program in self.crowd.programs:
            assert "Traceback" not in program.log_text()

    # ---- wishes ----------------------------------------------------------------------------------------------------

    async def _wish_on(self, at_once: int) -> None:
        while names := [name for name in self.crowd.names if self._left[name]]:
            await asyncio.sleep(_WISHES)
            names = self._rng.sample(names, min(at_once, len(names)))
            self._left.subtract(names)
            now = self.crowd.serials()
            try:
                await self.fleet.ask_for_renewal(self._rng.choice(self.fleet.brokers), hosts=names)
            except grpc.aio.AioRpcError as error:
                if error.code() not in LOST | {grpc.StatusCode.DEADLINE_EXCEEDED}:
                    raise
                continue  # whether it was heard isn't known: nothing is expected of it
            self.wishes += len(names)
            self._wanted |= {name: now[name] for name in names}

    # ---- losses ----------------------------------------------------------------------------------------------------

    def _losses(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        broker = self._rng.choice(self.fleet.brokers)
        return [
            ("brokers killed", lambda: self._of_broker(broker, self._kill)),
            ("brokers that stood still", lambda: self._of_broker(broker, self._stand_still)),
            ("brokers restarted", lambda: self._of_broker(broker, self._restart)),
            ("agent programs killed", self._kill_agents),
            ("primaries killed", self._crash_database),
        ]

    async def _of_broker(self, broker: Broker, loss: Callable[[Broker], Awaitable[None]]) -> None:
        async with self._busy[id(broker)]:
            await loss(broker)

    async def _kill(self, broker: Broker) -> None:
        broker.process.kill()
        await asyncio.sleep(self._rng.uniform(0.5, 8))
        await self._start(broker)

    async def _stand_still(self, broker: Broker) -> None:
        broker.stop_still()
        await asyncio.sleep(self._rng.uniform(2, _STILL + 5))
        broker.go_on()

    async def _restart(self, broker: Broker) -> None:
        await broker.process.stop()
        await self._start(broker)

    async def _start(self, broker: Broker) -> None:
        """As systemd does: again, while the database is away."""
        while True:
            try:
                await broker.start()
                await asyncio.sleep(_RESTART)
            except Exception as error:  # noqa: BLE001 - whatever the sandbox says of a program that ended
                print(f"a broker did not start and is started again: {error}", file=sys.stderr)
                await asyncio.sleep(_RESTART)
            else:
                if broker.process.running:
                    return
                print(f"a broker has ended and is started again:\n{broker.process.log_tail()}", file=sys.stderr)

    async def _kill_agents(self) -> None:
        program = self._rng.choice(self.crowd.programs)
        program.kill()
        await self.crowd.start_program(program)

    async def _crash_database(self) -> None:
        async with self._busy.setdefault(id(self.servers), asyncio.Lock()):
            self.servers.primary.crash()
            await asyncio.sleep(self._rng.uniform(0.5, 6))
            await self.servers.primary.start()

    # ---- figures ---------------------------------------------------------------------------------------------------

    def memory(self) -> list[int]:
        """Resident megabytes of each broker with its issuing process."""
        found = []
        for broker in self.fleet.brokers:
            process = psutil.Process(broker.process.pid)
            whole = [process, *process.children(recursive=True)]
            found.append(sum(each.memory_info().rss for each in whole) // 1_000_000)
        return found


async def soak(folder: Path, *, brokers: int, hosts: int, minutes: float, seed: int) -> dict[str, object]:
    """All of it; what was counted.

    Raises:
        AssertionError: something was lost, doubled or left over, or didn't end.
    """
    async with (
        server_pair(folder) as servers,
        Fleet.running(folder / "fleet", crowd_policy(hosts), [servers.place.url] * brokers) as fleet,
    ):
        await fleet.enroll(OPERATOR)
        crowd = Crowd(fleet, hosts, programs=-(-hosts // _IN_A_PROGRAM))
        world = FleetSoak(fleet, servers, crowd, random.Random(seed))
        try:
            await crowd.start()
            print(f"{hosts} agents run; memory of the brokers, MB: {world.memory()}", file=sys.stderr)
            began = time.monotonic()
            await world.run(minutes * 60)
            ended = time.monotonic()
            await world.settle()
            settled = time.monotonic() - ended
            await world.assert_sound()
            return {
                "hosts": hosts,
                "seconds": round(ended - began),
                "lost": dict(world.lost),
                "renewals wished": world.wishes,
                "certificates": len(fleet.deployment.pebble.log.issued),
                "seconds until all was settled": round(settled, 1),
                "longest without a broker, s": round(crowd.longest_without(began), 1),
                "memory of the brokers, MB": world.memory(),
            }
        finally:
            await crowd.stop()


def main() -> None:
    """Run it, and print what was counted as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--hosts", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        figures = asyncio.run(
            soak(
                folder, brokers=arguments.brokers, hosts=arguments.hosts, minutes=arguments.minutes, seed=arguments.seed
            )
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
