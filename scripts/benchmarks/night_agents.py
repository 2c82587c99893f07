"""The real agents of the night, each with an nginx that serves what it installs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from certplane.agent.install.material import Outputs
from certplane.runtime.clock import SystemClock
from certplane.sandbox.deployment import Deployment, Host
from certplane.sandbox.parts import Part
from tests.support.lineages import LocalIssuer, standing_pair
from tests.support.tls_services import Nginx, served_serial
from tests.support.waiting import until

NAME: Final = "real{}.certplane.test"
_AT_ONCE: Final = 4


class Agents:
    """`count` of them, enrolled at step-ca and renewed by whichever of the brokers is there."""

    def __init__(self, deployment: Deployment, urls: Sequence[str], nginx: Part, count: int) -> None:
        self._deployment, self._urls, self._nginx = deployment, list(urls), nginx
        self.count = count
        self._services: list[Nginx] = []
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Enroll and start them; each serves its first certificate on return."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> tuple[Host, Nginx]:
            async with room:
                return await self._start_one(NAME.format(number))

        started = await asyncio.gather(*map(one, range(self.count)))
        self._services = [service for _, service in started]
        placeholders = await self.serials()
        for host, _ in started:
            await host.start()
            self._stack.push_async_callback(host.stop)

        async def all_served() -> bool:
            return not set(await self.serials()) & set(placeholders)

        await until(all_served, poll=1, what="the first certificates of the real agents, served")

    async def stop(self) -> None:
        """Stop agents and services."""
        await self._stack.aclose()

    async def serials(self) -> list[str]:
        """What each nginx shows to its clients."""
        return await asyncio.gather(*(served_serial(service.port) for service in self._services))

    async def _start_one(self, name: str) -> tuple[Host, Nginx]:
        folder = self._deployment.folder
        tls = folder / "hosts" / name / "tls"
        outputs = Outputs(key=tls / "web.key", fullchain=tls / "web.pem")
        standing_pair(
            LocalIssuer(now=SystemClock().now().replace(microsecond=0)), outputs, "placeholder.certplane.test"
        )
        service = Nginx(self._nginx, folder / f"nginx-{name}", tls)
        await service.start()
        self._stack.push_async_callback(service.stop)
        certificate: dict[str, Any] = {
            "name": "web",
            "profile": "web",
            "dns_names": [name],
            "key": str(outputs.key),
            "fullchain": str(outputs.fullchain),
            "reload_command": service.reload_command,
            "verify": {"connect": f"127.0.0.1:{service.port}", "timeout": "30s", "attempts": 300, "interval": "100ms"},
        }
        link = {"url": None, "urls": self._urls, "timeout": "5s"}
        host = self._deployment.add_host(name, [certificate], agent={"broker": link})
        enrolled = await host.run("enroll")
        if enrolled.status:
            raise RuntimeError(f"{name} can't be enrolled: {enrolled.stderr}")
        return host, service
