"""Many real agents over several brokers, and what must hold of all of them: each host has one certificate, `web`.

The agents run in one program or in several (`agent_crowd`), which can be killed and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

import tests.support.agent_crowd
from certplane.sandbox.deployment import Host
from certplane.sandbox.process import ServerProcess
from tests.support.fleet import Fleet, is_waiting, policy_of
from tests.support.several_brokers import Broker
from tests.support.waiting import until


def names_of(count: int) -> list[str]:
    """The identities of so many hosts."""
    return [f"host{number}.certplane.test" for number in range(count)]


def crowd_policy(count: int) -> dict[str, Any]:
    """policy.yml for so many hosts, each with a profile and a name of its own."""
    labels = {name: name.partition(".")[0] for name in names_of(count)}
    profiles = {label: [f"www.{name}"] for name, label in labels.items()}
    return policy_of(profiles, {name: [label] for name, label in labels.items()})


class Crowd:
    """So many agents of a fleet, whose policy must be `crowd_policy`, in so many programs; none runs yet."""

    def __init__(self, fleet: Fleet, count: int, *, programs: int = 1) -> None:
        self.fleet = fleet
        self.names = names_of(count)
        self.hosts: dict[str, Host] = {}
        for name in self.names:
            certificate = {"name": "web", "profile": name.partition(".")[0], "dns_names": [f"www.{name}"]}
            agent = {"broker": {"url": None, "urls": fleet.urls, "timeout": "5s"}}
            self.hosts[name] = fleet.deployment.add_host(name, [certificate], agent=agent)
        self.programs = [
            self._program(number, [self.hosts[name] for name in self.names[number::programs]])
            for number in range(programs)
        ]

    def _program(self, number: int, hosts: Sequence[Host]) -> ServerProcess:
        deployment, program = self.fleet.deployment, Path(tests.support.agent_crowd.__file__)
        configs = [host.config for host in hosts]
        return ServerProcess(
            "agents", [deployment.python, "-P", program, *configs], deployment.folder / f"agents-{number}.log"
        )

    async def start(self) -> None:
        """Start the agents; returns when each has its certificate in use and all brokers know it."""
        await asyncio.gather(*(self.start_program(program) for program in self.programs))
        await self.until_settled()

    async def start_program(self, program: ServerProcess) -> None:
        """Start one program's agents, or start them again; returns at once."""

        async def at_once() -> bool:
            return True

        await program.start(at_once)

    async def stop(self) -> None:
        """Stop all agents."""
        await asyncio.gather(*(program.stop() for program in self.programs))

    def serials(self) -> dict[str, str]:
        """Which certificate each host has in use, by its files; none where it hasn't one yet."""
        serials = {}
        for name, host in self.hosts.items():
            with contextlib.suppress(FileNotFoundError):
                leaf = x509.load_pem_x509_certificate(host.output("web", "cert").read_bytes())
                serials[name] = format(leaf.serial_number, "x")
        return serials

    async def unlike(self, old: dict[str, str]) -> list[str]:
        """What isn't as it is to be: hosts that have not got another certificate than `old`, or that brokers see otherwise."""
        for program in self.programs:
            assert program.running, program.log_tail()
        serials = self.serials()
        found = [
            f"{name} has no other certificate" for name in self.names if serials.get(name, "") == old.get(name, "")
        ]
        for broker in self.fleet.brokers:
            shown = await self.fleet.hosts(broker)
            for name in self.names:
                host = shown.get(name)
                if host is None or not host.connected:
                    found.append(f"{name} is not connected, says {broker.url}")
                elif not is_waiting(host, "web"):
                    found.append(f"{name} is at work, says {broker.url}")
                elif [each.installed.serial_number for each in host.certificates if each.name == "web"] != [
                    serials.get(name, "")
                ]:
                    found.append(f"{name} has another certificate, says {broker.url}")
        return found

    async def until_settled(self, *renewed: str, old: dict[str, str] | None = None) -> None:
        """Wait until all is as it is to be, where `renewed` have another certificate than they had in `old`."""
        before = {name: (old or {}).get(name, "") for name in renewed}
        unlike: list[str] = []

        async def settled() -> bool:
            unlike[:] = await self.unlike({name: before.get(name, "") for name in self.names})
            return not unlike

        try:
            await until(settled, poll=0.5)
        except AssertionError as error:
            told = await self._said_of(*unlike)
            raise AssertionError(f"{len(unlike)} unlike: {unlike[:8]}\n{told}") from error

    async def _said_of(self, *unlike: str) -> str:
        """Of the host of the first thing that is unlike: what is planned for it, and the last that its agent has said."""
        name = "".join(unlike[:1]).partition(" ")[0]
        said = [line for program in self.programs for line in program.log_text().splitlines() if name in line]
        rows = await self.fleet.query("SELECT host, row_to_json(renewal_plans)::text FROM renewal_plans")
        plans = [plan for host, plan in rows if host == name]
        return "\n".join([*plans, *(line[:500] for line in said[-12:])])

    async def renew(self, names: Sequence[str], at: Broker | None = None) -> dict[str, str]:
        """Ask this broker, or one by chance, for their renewal; which certificates they have now."""
        old = self.serials()
        broker = at or random.choice([each for each in self.fleet.brokers if each.process.running])
        answer = await self.fleet.ask_for_renewal(broker, hosts=list(names))
        assert answer.changed_count == len(names)
        return old

    def longest_without(self, since: float) -> float:
        """How many seconds a host was without a broker at most, in what was told after a moment of the monotonic clock."""
        longest = 0.0
        lost: dict[str, float] = {}
        said = "".join(program.log_text() for program in self.programs)
        lines = [line for line in said.splitlines() if line.startswith('{"host"')]
        for told in map(json.loads, lines):
            if told["time"] < since:
                continue
            if not told["connected"]:
                lost.setdefault(told["host"], told["time"])
            elif told["host"] in lost:
                longest = max(longest, told["time"] - lost.pop(told["host"]))
        assert not lost, f"{sorted(lost)} have no broker"
        return longest

    async def assert_sound(self, certificates: int) -> None:
        """All orders have ended once, so many certificates were made in all, and nothing is left over."""
        await self.fleet.until_settled()
        assert len(self.fleet.deployment.pebble.log.issued) == certificates
        await self.fleet.assert_nothing_doubled()
        await self.fleet.assert_no_records_left(*(f"www.{name}" for name in self.names))
        for host in (await self.fleet.hosts(self.fleet.brokers[0])).values():
            assert (host.displaced_streams, host.contested) == (0, False), host.name
        for program in self.programs:
            assert "Traceback" not in program.log_text()
