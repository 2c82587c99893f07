"""Brokers of one database: what the second and the third cost, what a directive takes, and what a loss costs.

The same hosts, spread evenly, are served in turn by one broker on SQLite, and by one, two and three on one PostgreSQL
(synchronous commits, nothing else on the server). The brokers are those of `fleet`, a process each. What is compared is
processor time, of the brokers with their child processes and not of the database server: on two cores, streams or
reports a second would say how little room three brokers and their hosts have.

- A stream, a report: processor time of all brokers for each, until nothing is under way any more, without what they
  take when nobody asks for anything, which has a figure of its own.
- Idle hosts: the server's transactions a second (`pg_stat_database`), with hosts and without.
- A directive: a renewal is wanted at one broker, durable; how long until the hosts of the others have it.
- A kill: the hosts of one broker are back at the others, to what their connects alone take there.
- Orders: see `broker_orders`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import yaml

from benchmarks import broker_orders
from benchmarks.fleet import Fleet, HostProcesses, Process, free_port
from benchmarks.result import Figure, figure
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.postgres import PostgresCluster

HOSTS, RETURNING, DIRECTED, ORDERS = 600, 2_000, 60, 60
REPORTS = 21
"""Of each host: three renewals."""
SETTLE_SECONDS = 3.0
IDLE_SECONDS = 20.0
_DURABLE = {"fsync": "on", "synchronous_commit": "on"}
_COMMITS = "SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname = %s"


class Layout(NamedTuple):
    """How many brokers, on what."""

    driver: str
    brokers: int

    def __str__(self) -> str:
        return f"{self.brokers} on {self.driver}"


SQLITE = Layout("sqlite", 1)
LAYOUTS = (SQLITE, *(Layout("postgresql", count) for count in (1, 2, 3)))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one layout: processor milliseconds of a stream, a report and an order.

    Attributes:
        base: transactions a second of brokers without hosts.
        idle: the same with hosts.
        rest: processor milliseconds a second of all brokers without hosts.
        directives: seconds from the wish at one broker to each host of another one.
    """

    stream: float
    report: float
    order: float = 0.0
    base: float = 0.0
    idle: float = 0.0
    rest: float = 0.0
    directives: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Return:
    """A broker was killed: what its hosts' connects alone take, and seconds until 95 % of them are back."""

    expected: float
    back: float


def measure(folder: Path, *, rounds: int, share: float) -> list[Figure]:
    """All of it; `share` makes it smaller."""
    return asyncio.run(_measure(folder, rounds, share))


async def _measure(folder: Path, rounds: int, share: float) -> list[Figure]:
    count, returning, most = (max(12, int(number * share)) for number in (HOSTS, RETURNING, ORDERS))
    fleet = Fleet(folder / "fleet", max(count, returning))
    async with PostgresCluster(settings=_DURABLE) as cluster:
        runs: dict[Layout, list[Cost]] = {layout: [] for layout in LAYOUTS}
        returns = []
        heirs: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(rounds):
            for layout in LAYOUTS:
                place = folder / f"{turn}-{layout.driver}-{layout.brokers}"
                url = await _database(cluster, place, layout)
                cost = _cost(fleet, place, layout, url, count)
                orders = await broker_orders.processor_time(place / "orders", url, layout.brokers, most)
                runs[layout].append(replace(cost, order=orders * 1e3))
                _say(f"{layout}: {_told(runs[layout][-1])}")
            place = folder / f"{turn}-return"
            url = await _database(cluster, place, LAYOUTS[-1])
            returns.append(_return(fleet, place, url, returning))
            _say(f"{returning} hosts, one of three killed: {returns[-1]}")
            for orderly, waits in heirs.items():
                place = folder / f"{turn}-heirs-{orderly}"
                url = await _database(cluster, place, LAYOUTS[-1])
                waits.append(await broker_orders.take_over(place / "orders", url, 12, orderly=orderly))
            _say(f"orders of a lost broker: {heirs}")
    found = _figures(runs, returns, count)
    found.append(figure("a killed broker's orders go on elsewhere after, s", heirs[False], "<= 22"))
    found.append(figure("the same after an orderly stop, s", heirs[True], "<= 1"))
    return found


async def _database(cluster: PostgresCluster, place: Path, layout: Layout) -> str:
    place.mkdir()
    return "" if layout.driver == "sqlite" else await cluster.create_database(place.name.replace("-", "_"))


def _figures(runs: dict[Layout, list[Cost]], returns: Sequence[Return], count: int) -> list[Figure]:
    single, two, three = LAYOUTS[1:]
    found = []
    for what in ("order", "stream", "report"):
        found.append(figure(f"processor time a {what}, 1 on SQLite, ms", _of(runs[SQLITE], what), ""))
        for layout, of, goal in ((single, SQLITE, "<= 1.3"), (two, single, ""), (three, single, "<= 1.15")):
            ratios = [a / b for a, b in zip(_of(runs[layout], what), _of(runs[of], what), strict=True)]
            found.append(figure(f"processor time a {what}, {layout} to {of}", ratios, goal))
    found += [figure(f"processor time of brokers at rest, {one}, ms/s", _of(runs[one], "rest"), "") for one in LAYOUTS]
    for layout in (single, three):
        found.append(figure(f"transactions/s without hosts, {layout}", _of(runs[layout], "base"), ""))
        added = [(run.idle - run.base) / count * 10_000 for run in runs[layout]]
        found.append(figure(f"transactions/s of 10,000 idle hosts, {layout}", added, "<= 5"))
    late = [sorted(run.directives) for run in runs[three]]
    found.append(figure("directive to a host at another broker, p50, s", [_at(each, 0.5) for each in late], ""))
    found.append(figure("directive to a host at another broker, p99, s", [_at(each, 0.99) for each in late], "<= 1"))
    back = [each.back / each.expected for each in returns]
    found.append(figure("95 % of a killed broker's hosts back, to the connects alone", back, "<= 1.3"))
    return found


def _of(runs: Sequence[Cost], what: str) -> list[float]:
    return [getattr(run, what) for run in runs]


def _at(values: Sequence[float], quantile: float) -> float:
    return values[min(len(values) - 1, int(len(values) * quantile))]


class _Running(NamedTuple):
    """The brokers, and their hosts, those of each in processes of their own."""

    brokers: list[Process]
    hosts: list[HostProcesses]

    @property
    def processor(self) -> float:
        return sum(broker.processor for broker in self.brokers)

    def all_hosts(self, command: str) -> list[dict[str, Any]]:
        """Tell all, and wait for all."""
        for hosts in self.hosts:
            hosts.tell(command)
        return [answer for hosts in self.hosts for answer in hosts.answers()]


@contextlib.contextmanager
def _running(fleet: Fleet, place: Path, layout: Layout, url: str, count: int) -> Iterator[_Running]:
    with ExitStack() as stack:
        ports = [free_port() for _ in range(layout.brokers)]
        brokers = []
        for number, port in enumerate(ports):
            config = _configured(fleet, place / str(number), port, url)
            broker = Process("benchmarks.fleet", str(config), log=config.with_suffix(".log"))
            stack.callback(broker.end, signal.SIGTERM)
            brokers.append(broker)
        shares = [range(count)[number :: layout.brokers] for number in range(layout.brokers)]
        hosts, first = [], 0
        for port, share in zip(ports, shares, strict=True):
            others = [other for other in ports if other != port]
            mine = HostProcesses(fleet.folder, port, len(share), 1, first=first, others=others)
            stack.callback(mine.end)
            hosts.append(mine)
            first += len(share)
        yield _Running(brokers, hosts)


def _configured(fleet: Fleet, folder: Path, port: int, url: str) -> Path:
    folder.mkdir()
    settings = yaml.safe_load(fleet.config.read_text())
    settings["server"]["address"] = f"{LOOPBACK}:{port}"
    settings["audit"]["spill_path"] = str(folder / "spill.jsonl")
    settings["store"] = (
        {"driver": "postgresql", "url": url} if url else {"driver": "sqlite", "path": str(folder / "broker.db")}
    )
    config = folder / "broker.yml"
    config.write_text(yaml.safe_dump(settings))
    return config


def _cost(fleet: Fleet, place: Path, layout: Layout, url: str, count: int) -> Cost:
    with _running(fleet, place, layout, url, count) as running:
        time.sleep(SETTLE_SECONDS)
        base, rest = _at_rest(running, url)

        def cost(command: str) -> float:
            begun, before = time.monotonic(), running.processor
            running.all_hosts(command)
            time.sleep(SETTLE_SECONDS)
            return running.processor - before - rest * (time.monotonic() - begun)

        stream = cost(f"connect {max(1, 32 // layout.brokers)}") / count
        report = cost(f"report {REPORTS}") / (count * REPORTS)
        idle, _ = _at_rest(running, url)
        directives = _directives(running) if layout.brokers > 1 else ()
    return Cost(stream * 1e3, report * 1e3, base=base, idle=idle, rest=rest * 1e3, directives=directives)


def _at_rest(running: _Running, url: str) -> tuple[float, float]:
    """When nobody asks for anything: the server's transactions, and the brokers' processor seconds, a second."""
    time.sleep(2.0)  # what a session has done is in the server's view a second later
    before, begun, used = _transactions(url), time.monotonic(), running.processor
    time.sleep(IDLE_SECONDS)
    took = time.monotonic() - begun
    return (_transactions(url) - before) / took, (running.processor - used) / took


def _transactions(url: str) -> int:
    """The server's, so far, without those that ask this."""
    if not url:
        return 0
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(_COMMITS, (connection.info.dbname,)).fetchone()
        return 0 if row is None else int(row[0])


def _directives(running: _Running) -> tuple[float, ...]:
    """A renewal of each host of the other brokers is wanted at the first one, one after the other."""
    own = running.hosts[0].count
    wanted = min(DIRECTED, running.hosts[1].count)
    running.brokers[0].ask(f"certify {own} {wanted}")
    waits = []
    for number in range(wanted):
        begun = running.brokers[0].ask(f"want {own + number} 1")["time"]
        (answer,) = running.hosts[1].ask("directives-in-all 1")
        waits += [moment - begun for moment in answer["times"]]
    return tuple(waits)


def _return(fleet: Fleet, place: Path, url: str, count: int) -> Return:
    """Kill one of three brokers under its hosts."""
    with _running(fleet, place, LAYOUTS[-1], url, count) as running:
        lost, hosts = running.brokers[0], running.hosts[0]
        for others in running.hosts[1:]:
            others.connect()
        rate = hosts.connect()
        time.sleep(SETTLE_SECONDS)
        hosts.ask("stay")
        hosts.tell("away")
        lost.end()
        killed = time.monotonic()
        hosts.answers()
        answers = hosts.ask("back")
        times = sorted(moment for answer in answers for moment in answer["times"])
        return Return(hosts.count / rate, times[len(times) * 95 // 100 - 1] - killed)


def _told(cost: Cost) -> str:
    return (
        f"{cost.order:.1f} ms an order, {cost.stream:.2f} a stream, {cost.report:.3f} a report; {cost.base:.1f} "
        f"transactions/s, {cost.idle:.1f} with hosts, {len(cost.directives)} directives"
    )


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)
