"""What a broker's start and calls take with 100,000 hosts and years of rows, and how long each holds the event loop.

The broker is wired by `certplane.broker.app` in a process of its own, over the store of `growth_fill` and a policy with
all its hosts, once for a thousand hosts and once for the large number. A cold start has none of the database's pages in
the machine's cache. Each call is made by itself, inside the process, while a task looks every two milliseconds how
much the loop has worked since: the most is what every other call would have waited.

`python -m benchmarks.growth CONFIG HOSTS` is that process; it prints JSON: start, memory, and each call's times.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from benchmarks.fleet import Fleet
from benchmarks.growth_fill import Size, host_name, kept, key_of, profile_of, sha256
from benchmarks.held import timed
from benchmarks.result import Figure, figure
from certplane.broker.app import Broker, open_broker
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.pages import FleetOrder, hosts_page
from certplane.broker.fleet.requests import RenewalRequest, RenewalRequests
from certplane.broker.model import Caller, IdentityKind, OrderDraft, OrderState
from certplane.broker.ports import DurableLimits, OrderChange
from certplane.broker.prepared import prepare
from certplane.broker.renewal.model import Selection
from certplane.broker.settings import load_settings
from certplane.fleet_report.model import CertificateState
from certplane.runtime import garbage
from certplane.runtime.clock import SystemClock

SMALL: Final = 1_000
_TIMES: Final = 3
"""Each call is made so often; the median counts, and the longest hold of all."""
_CALLER: Final = Caller("bench", IdentityKind.OPERATOR, "bench", (), ("operator",), "1", "CN=Bench", "", datetime.max.replace(tzinfo=UTC))  # fmt: skip  # noqa: E501

Calls = Mapping[str, Callable[[int], Awaitable[object]]]
"""By name; the number says which turn it is."""


def measure(folder: Path, *, share: float) -> list[Figure]:
    """Fill what isn't there yet, and measure; `share` is of the 100,000 hosts."""
    hosts = max(SMALL, int(Size().hosts * share))
    small = _run(folder / "small", kept(Size().scaled(SMALL)), SMALL)
    large = _run(folder / "large", kept(Size().scaled(hosts)), hosts)
    longest = max(call["held"] for call in large["calls"].values())
    figures = [
        figure(f"start with {hosts} hosts, cold, s", [large["start"]], "<= 5"),
        figure(f"memory after it, MB; {small['memory']:.0f} with {SMALL}", [large["memory"]], "least"),
        figure("longest hold of the loop by a call, ms", [longest], "<= 30"),
    ]
    for name, call in large["calls"].items():
        few = small["calls"][name]
        figures.append(figure(f"{name}, ms; {few['ms']:.2f} with {SMALL}", [call["ms"]], "as with few"))
        figures.append(figure(f"{name}, holds the loop, ms; {few['held']:.1f}", [call["held"]], "<= 30"))
    return figures


def _run(folder: Path, database: Path, hosts: int) -> dict[str, Any]:
    folder.mkdir()
    fleet = Fleet(folder / "fleet", 1)
    settings = yaml.safe_load(fleet.config.read_text())
    settings["store"]["path"] = str(database)
    settings["audit"]["spill_path"] = str(folder / "spill.jsonl")
    fleet.config.write_text(yaml.safe_dump(settings))
    with (folder / "fleet" / "policy.yml").open("w") as policy:
        policy.write("version: 1\nprofiles: {web: {type: multi_san, dns_names: [www.certplane.test]}}\nhosts:\n")
        policy.writelines(
            f"  h{number}: {{identity: {host_name(number)}, profiles: [web]}}\n" for number in range(hosts)
        )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", str(fleet.config), str(hosts)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _forget_pages(path: Path) -> None:
    """Have the machine read the file from the disk again, as far as nobody else has it open."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _calls(broker: Broker, hosts: int) -> Calls:
    stores, plans, clock = broker.stores, broker.renewal_plans, SystemClock()
    view = broker.fleet.view
    requests = RenewalRequests(plans, stores.fleet, clock, AuditTrail(clock), why_none=view.why_none)
    middle = hosts // 2
    name, profile = host_name(middle), profile_of(middle)

    async def open_order(turn: int) -> object:
        key = sha256(f"new {time.time_ns()} {turn}")
        draft = OrderDraft(name, profile, sha256(profile), ("x.certplane.test",), key, b"csr", "acme", "bench")
        opened = await stores.orders.open_order(draft, DurableLimits(), [])
        assert opened is not None
        # The store is kept for the next run, whose start would go on with it.
        return await stores.orders.change_order(opened.order, OrderChange(state=OrderState.FAILED))

    async def nobody(_: int) -> object:
        degraded = FleetFilter(states=frozenset({CertificateState.DEGRADED})).at(clock.now())
        return await hosts_page(broker.fleet.index, degraded, FleetOrder.NAME, after=None, most=50)

    async def renew(selection: Selection) -> object:
        order = RenewalRequest(selection, "bench", f"bench-{time.time_ns()}", dry_run=True)
        return await requests.request(replace(_CALLER), order)

    some = tuple(host_name(number) for number in range(min(10_000, hosts)))
    return {
        "find_cached": lambda _: stores.certificates.find_cached(name, sha256(profile), "acme", key_of(middle, 3)),
        "open_order, and its failure": open_order,
        "get_host": lambda turn: stores.fleet.get_host(host_name(middle + turn)),
        "a page of 100 hosts": lambda turn: stores.fleet.list_hosts(after=host_name(middle + turn), limit=100),
        "ListHosts with a state that nobody has": nobody,
        "certificates in force of a name": lambda _: plans.select(
            Selection(dns_names=("www000007.certplane.test",)), clock.now()
        ),
        "RequestRenewal of 10,000 hosts, dry run": lambda _: renew(Selection(hosts=some)),
        "RequestRenewal of all, dry run": lambda _: renew(Selection(all=True)),
        "what the planner has to ask": lambda _: plans.to_check("acme", clock.now(), 100),
    }


async def _measured(call: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Milliseconds of a call, and the longest that the loop was held meanwhile."""
    found = [await timed(functools.partial(call, turn)) for turn in range(_TIMES)]
    seconds = sorted(each.seconds for each in found)[_TIMES // 2]
    return {"ms": seconds * 1000, "held": max(each.held for each in found) * 1000}


async def _broker(config: Path, hosts: int) -> dict[str, Any]:
    settings = load_settings(config)
    _forget_pages(settings.store.path)
    begun = time.perf_counter()
    prepared = prepare(settings)
    async with open_broker(prepared) as broker:
        start = time.perf_counter() - begun
        garbage.settled()
        memory = psutil.Process().memory_info().rss / 1e6
        await asyncio.sleep(3)  # what a start does beside the calls
        calls = {name: await _measured(call) for name, call in _calls(broker, hosts).items()}
    return {"start": start, "memory": memory, "calls": calls}


def main() -> None:
    """Be the broker, and print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("hosts", type=int)
    arguments = parser.parse_args()
    garbage.seldom()
    print(json.dumps(asyncio.run(_broker(arguments.config, arguments.hosts))))


if __name__ == "__main__":
    main()
