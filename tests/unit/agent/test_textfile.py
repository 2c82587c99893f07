"""The file for node_exporter: what stands in it, and that nothing suffers where it can't be written."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certplane import __version__
from certplane.agent.status import lineage_report, unreadable_report
from certplane.agent.textfile import METRICS, exposition
from tests.support.agent_world import AgentWorld, Recorder
from tests.support.waiting import HANG, until
from tests.unit.agent.test_status_report import FACTS, NOW, SPEC

_DOCUMENT = Path(__file__).parents[3] / "docs" / "agent.md"
NAUGHTY = 'a "b"\\\n{c="d"}'


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Value by the metric's name and its labels' values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    world = AgentWorld(tmp_path, [{"name": "web"}], metrics={"textfile": str(tmp_path / "metrics" / "certplane.prom")})
    yield world
    world.close()


def test_what_stands_there() -> None:
    """The end, when it is due, how bad it is, and how often it failed; Prometheus's own parser reads it."""
    report = lineage_report(SPEC, FACTS, NOW)
    failing = replace(report, failures=2, health="FAILING", activate_after=NOW + timedelta(days=1))
    found = samples(exposition([failing], NOW))
    assert found["certplane_agent_build_info", __version__] == 1
    assert found["certplane_agent_written_timestamp_seconds",] == NOW.timestamp()
    assert FACTS.current is not None
    end = "certplane_agent_certificate_not_after_timestamp_seconds"
    assert found[end, "web"] == FACTS.current.not_after.timestamp()
    assert found["certplane_agent_certificate_renew_timestamp_seconds", "web"] < found[end, "web"]
    activate = "certplane_agent_certificate_activate_timestamp_seconds"
    assert found[activate, "web"] == (NOW + timedelta(days=1)).timestamp()
    assert found["certplane_agent_certificate_failures", "web"] == 2
    health = {key[2]: value for key, value in found.items() if key[0] == "certplane_agent_certificate_health"}
    assert [word for word, value in health.items() if value] == ["FAILING"]
    assert {"OK", "EXPIRED"} <= health.keys()
    assert {key[0] for key in found} == set(METRICS)


def test_labels_full_of_quotes_and_newlines() -> None:
    """A name is read back as it is, and a lineage that can't be read hides no other."""
    odd = unreadable_report(replace(SPEC, name=NAUGHTY), "a\nb", NOW)
    found = samples(exposition([odd, lineage_report(SPEC, FACTS, NOW)], NOW))
    assert found["certplane_agent_certificate_health", NAUGHTY, "WONT_HEAL"] == 1
    assert found["certplane_agent_certificate_health", "web", "OK"] == 1
    assert ("certplane_agent_certificate_not_after_timestamp_seconds", NAUGHTY) not in found
    assert ("certplane_agent_certificate_activate_timestamp_seconds", "web") not in found


def test_each_is_documented() -> None:
    """docs/agent.md has a row for each, with its labels."""
    rows = re.findall(r"^\| `(certplane_agent_\w+)` \| (.*?) \|", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {name: ", ".join(f"`{label}`" for label in labels) for name, (labels, _) in METRICS.items()}


async def test_a_run_writes_it(world: AgentWorld) -> None:
    """`run --once` leaves it behind: readable for others, and nothing beside it."""
    file = world.folder / "metrics" / "certplane.prom"
    file.parent.mkdir()
    await world.enroll()
    await world.agent().run_once()
    assert samples(file.read_text())["certplane_agent_certificate_health", "web", "OK"] == 1
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(file.parent.iterdir()) == [file]


async def test_where_it_cannot_be_written(world: AgentWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The run is well all the same; a daemon says so once, and writes it when the directory is there."""
    caplog.set_level(logging.WARNING)
    await world.enroll()
    await world.agent().run_once()

    def said() -> int:
        return sum("metrics.textfile can't be written: No such file" in record.message for record in caplog.records)

    assert said() == 1
    stop = asyncio.Event()
    task = asyncio.create_task(world.agent().run(stop, Recorder()))
    try:
        await until(lambda: said() == 2)
        (world.folder / "metrics").mkdir()
        await until(lambda: _pass(world))
        assert said() == 2
    finally:
        stop.set()
        await asyncio.wait_for(task, HANG)


def _pass(world: AgentWorld) -> bool:
    world.clock.advance(timedelta(seconds=10))
    return (world.folder / "metrics" / "certplane.prom").exists()
