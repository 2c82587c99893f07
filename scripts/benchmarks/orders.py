"""Orders at a public CA: how much of their time they share, and what the CA, the DNS API and other callers notice.

The real broker asks a real Pebble, over a proxy that counts, and proves names through the sandbox's Cloudflare API and
BIND, with DNS that takes 5 s to spread and the look at it that an operator gets by default, every 2 s. A round measures
in turn: one order of two names by itself; 200 such orders at once, all in one zone; 50 of them, for what the DNS API
gets to write; certificates from the cache with nothing else running, and beside another 200 orders.

How late the broker's event loop was is read from its own metrics, beside it a process that does nothing else measures
how late this machine wakes anybody.

The peer is certbot with its Cloudflare plugin, as many would use it instead: one run an order, 16 runs at once, each
told to wait for the DNS as long as it takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.processes import processor_seconds
from benchmarks.result import Figure, figure
from certplane.broker.issuers.answers import parse_retry_after
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.sandbox.acme_endpoints import (
    AUTHORIZATION,
    CERTIFICATE,
    CHALLENGE,
    FINALIZE,
    NEW_ORDER,
    ORDER,
    RENEWAL_INFO,
)
from certplane.sandbox.exchange import Exchange
from certplane.sandbox.loopback import free_port
from certplane.sandbox.pebble import PebbleOptions
from tests.support.deployed_broker import DeployedBroker, issue
from tests.support.storm import AtCa, Storm, records_left, trouble

ORDERS, IN_ONE_ZONE, NAMES = 200, 50, 2
SPREAD = timedelta(seconds=5)
PEER_AT_ONCE = 16
CACHED, ALONE = "p0", "p1"
NEEDED = {NEW_ORDER: 1, AUTHORIZATION: NAMES, CHALLENGE: NAMES, FINALIZE: 1, CERTIFICATE: 1}
"""What RFC 8555 needs for an order beside looking at it: nonces come with answers, the account is there."""
_BUCKET = re.compile(r'^certplane_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
_IDLE = """
import asyncio, sys, time
async def main():
    late, done = [], asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not done.done():
        due = time.monotonic() + 0.025
        await asyncio.sleep(0.025)
        late.append(time.monotonic() - due)
    print(sorted(late)[len(late) * 99 // 100])
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round saw; seconds, and counts of an order.

    Attributes:
        alone: one order.
        together: all orders at once.
        beyond: requests to the CA that were neither needed nor looks at an order.
        polls: looks at an order.
        early: of these, before the CA had asked for them.
        writes: to the DNS API.
        processor: processor seconds of all the broker's processes, of all orders at once until nothing is under way.
        late: 99th percentile of the broker's event loop, and of a process that does nothing.
        cached: certificates from the cache a second, with nothing running and beside the orders; None without ghz.
    """

    alone: float
    together: float
    beyond: float
    polls: float
    early: float
    writes: float
    processor: float
    late: tuple[float, float]
    cached: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Peer:
    """Seconds that certbot took for one order and for all, and that we took for one and for all."""

    alone: float
    together: float
    ours: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BadDay:
    """Seconds for one order on a good day, and for all on a bad day of the CA's and the DNS API's."""

    alone: float
    together: float


class Bench:
    """A deployment to measure, and the storm of orders on it."""

    def __init__(self, broker: DeployedBroker, storm: Storm, metrics_port: int) -> None:
        self.broker, self.storm = broker, storm
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self._profiles = [f"p{number}" for number in range(1, storm.orders)]

    async def run(self, orders: int) -> float:
        """That many orders at once; returns the seconds until the last one is ISSUED."""
        begun = time.monotonic()
        ended = await self.storm.issue(self.broker, self._profiles[:orders])
        took = time.monotonic() - begun
        if failed := [one for one in ended if one.state != "ISSUED"]:
            raise RuntimeError(
                f"{len(failed)} of {orders} orders failed; the figures mean nothing: {failed[0].message}"
            )
        return took

    async def settle(self) -> None:
        """Until nothing of the orders is under way any more, and the DNS has settled."""
        await self.broker.settle()
        await self.broker.deployment.cloudflare.spread()

    @property
    def processor(self) -> float:
        """Processor seconds of all the broker's processes, so far."""
        return processor_seconds(self.broker.deployment.broker_process.pid)

    def exchanges(self) -> list[Exchange]:
        """With the CA, so far."""
        assert self.broker.deployment.proxy is not None
        return self.broker.deployment.proxy.seen()

    def writes(self) -> int:
        """Calls of the DNS API that write, so far."""
        return sum(call.method != "GET" for call in self.broker.deployment.cloudflare.calls)

    def lags(self) -> dict[float, float]:
        """The broker's histogram of how late its event loop was, so far."""
        with urllib.request.urlopen(self._metrics, timeout=10) as answer:  # noqa: S310 - it is ours
            text = answer.read().decode()
        return {float(edge): float(count) for edge, count in _BUCKET.findall(text)}


async def measure(folder: Path, ghz: Path | None, protoset: Path | None, *, rounds: int) -> list[Round]:
    """Run the rounds."""
    async with _bench(folder) as bench:
        cached = await _cached_load(bench.broker, bench.storm, folder, ghz, protoset)
        bench.broker.deployment.cloudflare.spread_time = SPREAD
        await bench.run(1)
        return [await _round(bench, cached) for _ in range(rounds)]


async def measure_peer(folder: Path, certbot: Path) -> Peer:
    """Certbot once, which takes ten minutes, and ours over the same names."""
    async with _bench(folder) as bench:
        bench.broker.deployment.cloudflare.spread_time = SPREAD
        await bench.run(1)
        alone = await bench.run(1)
        await bench.settle()
        together = await bench.run(ORDERS)
        await bench.settle()
        return await _peer(bench.broker, bench.storm, folder / "certbot", certbot, ours=(alone, together))


async def measure_bad_day(folder: Path, *, rounds: int) -> list[BadDay]:
    """Some bad days, one after the other, each with a CA of its own."""
    found = []
    for number in range(rounds):
        storm = Storm(ORDERS, names=NAMES)
        options = PebbleOptions(nonce_rejects=20)
        async with storm.deployed(folder / str(number), pebble=options, broker=_settings(free_port())) as broker:
            found.append(await _bad_day(broker, storm))
    return found


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    storm, metrics = Storm(ORDERS + 1, names=NAMES), free_port()
    options = PebbleOptions(order_retry_after=timedelta(seconds=1))
    async with storm.deployed(folder / "deployment", pebble=options, broker=_settings(metrics)) as broker:
        yield Bench(broker, storm, metrics)


def _settings(metrics_port: int) -> Mapping[str, Any]:
    return {
        "issuer": {"acme": {"propagation": {"interval": "2s", "timeout": "120s"}}},
        "metrics": {"address": f"127.0.0.1:{metrics_port}"},
        "audit": {"failure_mode": "fail_closed"},
    }


async def _round(bench: Bench, cached: _CachedLoad | None) -> Round:
    alone = await bench.run(1)
    await bench.settle()

    seen, lags, used = len(bench.exchanges()), bench.lags(), bench.processor
    with subprocess.Popen(
        [sys.executable, "-c", _IDLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as idle:
        together = await bench.run(ORDERS)
        since = bench.lags()
        machine, _ = idle.communicate()
    await bench.settle()
    used = bench.processor - used
    exchanges = bench.exchanges()[seen:]
    kinds = Counter(exchange.kind for exchange in exchanges)

    written = bench.writes()
    await bench.run(IN_ONE_ZONE)
    await bench.settle()
    writes = (bench.writes() - written) / IN_ONE_ZONE

    both = None
    if cached is not None:
        quiet = await cached.run(together)
        beside = asyncio.create_task(cached.run(together))
        await bench.run(ORDERS)
        both = (quiet, await beside)
        await bench.settle()
    return Round(
        alone=alone,
        together=together,
        # Renewal times (RFC 9773) are asked for by the broker's plans, not by an order.
        beyond=(len(exchanges) - kinds[ORDER] - kinds[RENEWAL_INFO]) / ORDERS - sum(NEEDED.values()),
        polls=kinds[ORDER] / ORDERS,
        early=_early(exchanges) / ORDERS,
        writes=writes,
        processor=used / ORDERS,
        late=(_quantile({edge: count - lags[edge] for edge, count in since.items()}, 0.99), float(machine)),
        cached=both,
    )


def _early(exchanges: Sequence[Exchange]) -> int:
    """Looks at orders that came before the time that the CA had asked to be left alone (Retry-After, RFC 8555 7.4)."""
    asked: dict[str, float] = {}
    early = 0
    began = datetime.now(UTC) - timedelta(seconds=time.monotonic())  # of the clock that the proxy has its times from
    for exchange in exchanges:
        reply = exchange.told
        if exchange.kind not in {NEW_ORDER, ORDER, FINALIZE} or reply is None:
            continue
        order = reply.header("Location").partition("://")[2].partition("/")[2]
        path = exchange.path if exchange.kind == ORDER else f"/{order}"
        if exchange.kind == ORDER and exchange.at < asked.get(path, 0.0):
            early += 1
        status = (reply.json() or {}).get("status")
        retry_after = reply.header("Retry-After") if status in {"pending", "processing"} else None
        wait = parse_retry_after(retry_after, began + timedelta(seconds=exchange.at)) or timedelta()
        # A new order's is about its authorizations, which the client has to meet first.
        asked[path] = exchange.at + wait.total_seconds() if exchange.kind != NEW_ORDER else 0.0
    return early


def _quantile(buckets: Mapping[float, float], wanted: float) -> float:
    """As Prometheus' histogram_quantile has it: straight lines between the edges."""
    edges = sorted(buckets)
    rank = wanted * buckets[edges[-1]]
    lower, below = 0.0, 0.0
    for edge in edges:
        if buckets[edge] >= rank:
            if edge == float("inf"):
                return lower
            return lower + (edge - lower) * (rank - below) / max(buckets[edge] - below, 1.0)
        lower, below = edge, buckets[edge]
    return lower


@dataclass(frozen=True, slots=True)
class _CachedLoad:
    """ghz asking for one certificate that the broker has."""

    ghz: Path
    target: load.Target
    data: Path
    protoset: Path

    async def run(self, seconds: float) -> float:
        """Answers a second."""

        def call() -> load.LoadResult:
            return load.run(
                self.ghz, self.target, self.data, self.protoset, seconds=round(seconds), connections=8, streams=8
            )

        result = await asyncio.get_running_loop().run_in_executor(None, call)
        if result.failed:
            raise RuntimeError(f"{result.failed} calls did not answer OK; the figures mean nothing")
        return result.per_second


async def _cached_load(
    broker: DeployedBroker, storm: Storm, folder: Path, ghz: Path | None, protoset: Path | None
) -> _CachedLoad | None:
    if ghz is None or protoset is None:
        return None
    files = folder / "client"
    files.mkdir()
    identity = await broker.identity(storm.host)
    (files / "client.pem").write_bytes(identity.chain_pem)
    (files / "client.key").write_bytes(identity.key_pem)
    (files / "root.pem").write_bytes((broker.deployment.broker_folder / "root.crt").read_bytes())
    csr = build_csr(generate_private_key(KeyType.EC_P256), sans=storm.names_of(CACHED))
    async with broker.channel(storm.host) as channel:
        await issue(channel, profile=CACHED, csr_pem=csr)
    (files / "request.json").write_text(json.dumps([{"profile": CACHED, "csrPem": csr}]))
    return _CachedLoad(ghz, load.Target(broker.deployment.broker_port, files), files / "request.json", protoset)


async def _bad_day(broker: DeployedBroker, storm: Storm) -> BadDay:
    """One order, then all others on the bad day: none lost or doubled, nothing left over."""
    broker.deployment.cloudflare.spread_time = SPREAD
    begun = time.monotonic()
    first = await storm.issue(broker, [CACHED])
    alone = time.monotonic() - begun
    await broker.settle()
    trouble(broker)
    begun = time.monotonic()
    ended = [*first, *await storm.issue(broker, [f"p{number}" for number in range(1, storm.orders)])]
    took = time.monotonic() - begun
    await broker.settle()
    assert broker.deployment.proxy is not None
    at_ca, log = AtCa.served(broker.deployment.proxy), broker.deployment.pebble.log
    issued = sum(one.state == "ISSUED" for one in ended)
    counts = (issued, len(at_ca.orders), len(set(at_ca.finalized)), len(at_ca.finalized), len(log.issued))
    left = await records_left(broker, storm.challenge_names)
    if counts != (ORDERS,) * len(counts) or left:
        raise RuntimeError(f"of {ORDERS} orders on a bad day: {counts}, and {len(left)} records are left")
    return BadDay(alone, took)


async def _peer(
    broker: DeployedBroker, storm: Storm, folder: Path, certbot: Path, *, ours: tuple[float, float]
) -> Peer:
    """Certbot over the same names: one run, then all of them."""
    folder.mkdir()
    deployment = broker.deployment
    assert deployment.proxy is not None
    credentials = folder / "cloudflare.ini"
    credentials.touch(0o600)
    credentials.write_text(f"dns_cloudflare_api_token = {deployment.cloudflare.token}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "REQUESTS_CA_BUNDLE": str(deployment.proxy.roots_file),
        "CLOUDFLARE_BASE_URL": deployment.cloudflare.base_url,
    }
    places = asyncio.Semaphore(PEER_AT_ONCE)

    async def run(profile: str) -> None:
        base = folder / profile
        argv = [
            str(certbot), "certonly", "--non-interactive", "--agree-tos", "--email", "operator@certplane.test",
            "--no-eff-email", "--key-type", "ecdsa", "--server", deployment.proxy.url if deployment.proxy else "",
            "--config-dir", str(base), "--work-dir", str(base), "--logs-dir", str(base),
            "--dns-cloudflare", "--dns-cloudflare-credentials", str(credentials),
            "--dns-cloudflare-propagation-seconds", str(int(SPREAD.total_seconds()) + 1),
            *(part for name in storm.names_of(profile) for part in ("-d", name)),
        ]  # fmt: skip
        async with places:
            process = await asyncio.create_subprocess_exec(
                *argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"certbot ended with status {process.returncode}: {output.decode()[-500:]}")

    await run(CACHED)  # what a first run does once: Python's compiled files
    begun = time.monotonic()
    await run(ALONE)
    alone = time.monotonic() - begun
    begun = time.monotonic()
    await asyncio.gather(*(run(f"p{number}") for number in range(1, ORDERS + 1)))
    return Peer(alone, time.monotonic() - begun, ours)


def figures(rounds: list[Round]) -> list[Figure]:
    """The goals' figures: median, least and most of the rounds."""
    found = [
        figure("processor time an order, all the broker's processes, ms", [r.processor * 1e3 for r in rounds], "<= 18"),
        figure("event loop, ms late at p99 during 200 orders", [r.late[0] * 1000 for r in rounds], "<= 10"),
        figure("the same of a process that does nothing", [r.late[1] * 1000 for r in rounds], ""),
        figure("200 orders at once, to the time of one", [r.together / r.alone for r in rounds], "<= 4"),
        figure("requests to the CA an order, beyond the needed and looks", [r.beyond for r in rounds], ""),
        figure("looks at an order (two are needed)", [r.polls for r in rounds], ""),
        figure("looks at an order before the CA asked for them", [r.early for r in rounds], "<= 0"),
        figure("writes to the DNS API an order, 50 in one zone", [r.writes for r in rounds], "<= 0.20"),
    ]
    beside = [r.cached[1] / r.cached[0] for r in rounds if r.cached is not None]
    if beside:
        found.insert(3, figure("cached issue beside 200 orders, req/s to nothing beside", beside, ">= 0.80"))
    return found


def bad_day_figures(days: list[BadDay]) -> list[Figure]:
    """That it came to an end without a loss is the figure."""
    return [figure("200 orders on a bad day, to the time of one", [day.together / day.alone for day in days], "")]


def peer_figures(peer: Peer) -> list[Figure]:
    """Of one run."""
    return [
        figure("certbot: 200 orders, 16 at once, to one", [peer.together / peer.alone], ""),
        figure("certbot's time for 200 orders to ours", [peer.together / peer.ours[1]], ""),
        figure("certbot's time for one order to ours", [peer.alone / peer.ours[0]], ""),
    ]
