"""The demo of several brokers: one is killed in the midst of an order, one stops, and the host has its certificates.

The brokers share a PostgreSQL; the host knows all of them. Told and shown as `demo` does, with the same rules.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from certplane.runtime.clock import SystemClock
from certplane.runtime.progress import open_progress
from certplane.runtime.text import counted
from certplane.sandbox.demo_display import Display
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.errors import ServerStartError
from certplane.sandbox.fleet_broker import FleetBroker, shared
from certplane.sandbox.loopback import steady_port
from certplane.sandbox.operator import Operator
from certplane.sandbox.pebble import PebbleOptions
from certplane.sandbox.postgres import PostgresCluster

_HOST: Final = "web1.certplane.test"
_FILES: Final = f"hosts/{_HOST}"
_OPERATOR: Final = "alice.certplane.test"
_CTL: Final = ("certplanectl", "-c", f"hosts/{_OPERATOR}/ctl.yml")
_AGENT: Final = ("certplane-agent", "-c", f"{_FILES}/agent.yml")
_NAMES: Final = ["www.certplane.test", "api.certplane.test"]
_POLICY: Final[dict[str, Any]] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": _NAMES}},
    "hosts": {"web1": {"identity": _HOST, "profiles": ["web"]}},
    "operators": {"alice": {"identity": _OPERATOR, "roles": ["operator"]}},
}
_VALIDATES: Final = timedelta(seconds=4)
"""How long the CA takes to validate: time to be killed in."""
_PATIENCE: Final = 120.0
"""Seconds. A killed broker's order goes on when its lease has ended."""
_BETWEEN_LOOKS: Final = 0.1
_RECORD: Final = "TXT record written"
"""What a broker's log says of an order that the CA is about to validate."""


class FleetDemo:
    """Brokers, a host and an operator, all started. See `started`."""

    def __init__(self, deployment: Deployment, brokers: list[FleetBroker], host: Host, show: Display) -> None:
        self._deployment = deployment
        self._brokers = brokers
        self._host = host
        self._alice = Operator(deployment, _OPERATOR)
        self._show = show

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path, count: int, show: Display) -> AsyncIterator[FleetDemo]:
        """The servers and so many brokers; all are stopped at the end.

        Raises:
            PartMissingError: there is no Pebble or no PostgreSQL.
            ServerStartError: something doesn't start.
        """
        async with AsyncExitStack() as stack:
            with open_progress(SystemClock(), as_json=False, stream=sys.stdout) as progress:
                progress.step("database", "starting")
                cluster = await stack.enter_async_context(PostgresCluster())
                url = await cluster.create_database("certplane")
                progress.done("database", f"PostgreSQL at {url}")
                common, secrets = shared(url)
                options = DeploymentOptions(
                    _POLICY,
                    broker={**common, "server": {"drain_timeout": "1s"}},
                    secrets=secrets,
                    pebble=PebbleOptions(validation_sleep=_VALIDATES),
                )
                deployment = await stack.enter_async_context(Deployment(folder, options, progress))
                deployment.broker_port = steady_port()
                deployment.write_broker_config()
                brokers = [
                    FleetBroker(deployment, number, port=0 if number == 1 else steady_port(), store_url=url)
                    for number in range(1, count + 1)
                ]
                for number, broker in enumerate(brokers, start=1):
                    stack.push_async_callback(_stop, broker)
                    progress.step(f"broker {number}", "starting")
                    await broker.start()
                    progress.done(f"broker {number}", f"at {broker.url}")
                link = {"url": None, "urls": [broker.url for broker in brokers], "timeout": "5s"}
                certificate = {"name": "web", "profile": "web", "dns_names": _NAMES}
                host = deployment.add_host(_HOST, [certificate], agent={"broker": link})
            yield cls(deployment, brokers, host, show)

    async def tell(self) -> None:
        """The whole story."""
        show = self._show
        show.heading("1. The brokers: what they share is in one PostgreSQL; a file of each says where")
        await show.run("grep", "-A4", "^store:", "broker/1/broker.yml")
        await show.run("grep", "-A1", "account_key:", "broker/1/broker.yml")
        await show.run("certplane-agent", "-c", f"hosts/{_OPERATOR}/agent.yml", "enroll")
        await show.run(*_CTL, "brokers", table=True)

        show.heading("2. A host knows all of them, and uses one at a time")
        await show.run("grep", "-A7", "^broker:", f"{_FILES}/agent.yml")
        await show.run(*_AGENT, "enroll")
        show.lines(f"\n$ {shlex.join(_AGENT)} run &")
        await self._host.start()
        await self._host.until_running()
        await self._installed("")
        await show.run(*_AGENT, "status")

        show.heading("3. The host's broker is killed in the midst of an order")
        killed = await self._in_the_midst("kill", "-9")
        show.say(
            "The host finds another broker by itself. The order goes on there once the lease of the killed one has "
            "ended, in twenty seconds at most: with a look at what the CA has of it, and with the same key."
        )
        await self._installed(killed)
        await show.run(*_CTL, "host", "web1", table=True)
        await show.run(*_CTL, "brokers", table=True)

        show.heading("4. It is started again, and the next one stops in the midst of an order")
        await self._start_again()
        stopped = await self._in_the_midst("kill")
        show.say("A broker that stops gives back what it hasn't finished: another one goes on within a second.")
        await self._installed(stopped)
        await show.run(*_CTL, "host", "web1", table=True)

        show.heading("5. Nothing is lost, and nothing is there twice")
        await self._start_again()
        await show.run(*_CTL, "brokers", table=True)
        broker = ("certplane-broker", "-c", "broker/1/broker.yml")
        await show.run(*broker, "audit", "tail", "--limit", "25", table=True)
        await show.run(*broker, "certs", "list", table=True)
        log = self._deployment.pebble.log
        show.say(
            f"The CA says the same: {counted(len(log.orders), 'order')}, "
            f"{counted(len(log.finalizations), 'finalisation')}, {counted(len(log.issued), 'certificate')}."
        )

    def to_try(self, programs: Path, process: int) -> str:
        """The commands that a user may try while all of it is left running.

        Args:
            programs: where the programs are installed.
            process: the demo's process id.
        """
        commands = [
            f"cd {shlex.quote(str(self._deployment.folder))}",
            f"export PATH={shlex.quote(str(programs))}:$PATH",
            f"{shlex.join(_CTL)} brokers",
            f"{shlex.join(_CTL)} fleet",
            f"{shlex.join(_CTL)} renew --host web1 --profile web --reason 'trying it' --yes",
            f"{shlex.join(_AGENT)} status",
            *(f"kill -9 {broker.process.pid}  # the broker at {broker.url}" for broker in self._brokers),
        ]
        lines = "".join(f"  {command}\n" for command in commands)
        return (
            f"The brokers and the agent of {_HOST} run. In another terminal:\n{lines}"
            f"Ctrl-C stops everything, and so does:\n  kill {process}\n"
        )

    async def _in_the_midst(self, *kill: str) -> str:
        """Have the certificate renewed, and do this to its broker while it works; what was in use before."""
        show, before = self._show, await self._installed("")
        its = await self._broker_of_the_host()
        number = self._brokers.index(its)
        other = self._brokers[number - 1]
        self._alice.write_config(other.url)
        show.lines(f"The host is at broker {number + 1}, {its.url}. The operator asks at {other.url}.\n")
        written = its.process.log_text().count(_RECORD)
        await show.run(
            *_CTL, "renew", "--host", "web1", "--profile", "web", "--reason", "to see it", "--yes", table=True
        )

        async def works() -> bool:
            return its.process.log_text().count(_RECORD) > written

        await _until(works, "certplane-broker", "has no order of the host")
        await show.run(*kill, str(its.process.pid))
        return before

    async def _broker_of_the_host(self) -> FleetBroker:
        """The broker that has the host's stream, as the host says."""
        found: list[FleetBroker] = []

        async def connected() -> bool:
            link = json.loads((await self._host.run("status", "--json")).stdout)["broker"]
            found[:] = [each for each in self._brokers if each.url == link.get("brokerUrl") and each.process.running]
            return link["phase"] == "connected" and bool(found)

        await _until(connected, "certplane-agent", "is not connected")
        return found[0]

    async def _installed(self, before: str) -> str:
        """The serial number of the certificate in use, once it is another one than before and all is told."""
        found: list[str] = []

        async def other() -> bool:
            answer = await self._alice.run("host", "web1", "--json")
            certificates = json.loads(answer.stdout).get("certificates", []) if answer.status == 0 else []
            found[:] = [
                each["installed"]["serialNumber"]
                for each in certificates
                if each["state"] == "STATE_WAITING" and each["name"] == "web"
            ]
            return bool(found) and found[0] != before

        await _until(other, "certplane-agent", "has no other certificate")
        return found[0]

    async def _start_again(self) -> None:
        for number, broker in enumerate(self._brokers, start=1):
            if not broker.process.running:
                self._show.lines(f"$ certplane-broker -c broker/{number}/broker.yml serve &\n")
                await broker.start()


async def _stop(broker: FleetBroker) -> None:
    await broker.process.stop()


async def _until(condition: Callable[[], Awaitable[bool]], program: str, otherwise: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + _PATIENCE
    while not await condition():
        if loop.time() > end:
            raise ServerStartError(program, otherwise)
        await asyncio.sleep(_BETWEEN_LOOKS)
