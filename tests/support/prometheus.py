"""A real Prometheus of a test's own, and the files that operators give theirs."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from certplane.sandbox.parts import Part
from certplane.sandbox.process import ServerProcess, start_on_free_port
from tests.support.waiting import HANG

MONITORING = Path(__file__).parents[2] / "packaging" / "monitoring"
RULES = MONITORING / "certplane-rules.yml"
DASHBOARD = MONITORING / "certplane-dashboard.json"
SCRAPES = MONITORING / "prometheus.yml"


@dataclass(frozen=True)
class DashboardQuery:
    """One query of a panel, or of the list that a variable offers."""

    panel: str
    expression: str


def alert_rules() -> list[dict[str, Any]]:
    """All of the file."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def dashboard_queries() -> list[DashboardQuery]:
    """What the panels ask for."""
    return [
        DashboardQuery(panel["title"], target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def promtool(part: Part) -> Path:
    """Debian's package and Prometheus's own archives have it beside the server."""
    return part.path.with_name("promtool")


class Prometheus:
    """Scrapes each second, with the shipped rules."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query gives now."""
        found: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return found

    async def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or fire."""
        found: list[dict[str, Any]] = (await self._get("alerts"))["alerts"]
        return found

    async def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}{what}?{urllib.parse.urlencode(parameters)}"

        def get() -> Any:
            with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own server
                return json.load(answer)["data"]

        return await asyncio.to_thread(get)


@asynccontextmanager
async def running_prometheus(part: Part, folder: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    """One that scrapes `targets` under the job's name that the shipped configuration has."""
    shipped = yaml.safe_load(SCRAPES.read_text(encoding="utf-8"))
    (scrape,) = shipped["scrape_configs"]
    scrape["static_configs"] = [{"targets": list(targets)}]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [scrape],
    }
    _write(folder / "prometheus.yml", yaml.safe_dump(config))

    async def start(port: int) -> tuple[ServerProcess, int]:
        server = ServerProcess(
            "prometheus",
            [
                part.path,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            folder / "log",
        )

        async def ready() -> bool:
            return bool(await Prometheus(port).query("vector(1)"))

        await server.start(ready)
        return server, port

    server, port = await start_on_free_port(start)
    try:
        yield Prometheus(port)
    finally:
        await server.stop()


def _write(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
