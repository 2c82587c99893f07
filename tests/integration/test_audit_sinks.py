"""Whole brokers of one database copy its audit log to a real collector, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.app import Broker
from certplane.broker.sinks.gate import SinkGate
from tests.support.broker_files import BrokerFiles
from tests.support.log_receivers import Collector
from tests.support.waiting import until
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration


def copying(files: BrokerFiles, collector: Collector) -> BrokerFiles:
    endpoint = f"http://127.0.0.1:{collector.port}"
    files.settings["audit"]["sinks"] = {"collector": {"otlp": {"endpoint": endpoint}, "required": True}}
    files.write()
    return files


async def recorded(broker: Broker) -> list[object]:
    return [record["event_id"] for record in await broker.stores.audit.tail(100)]


def copied(collector: Collector) -> list[Any]:
    return [json.loads(record.body.string_value)["event_id"] for record in collector.records]


async def test_the_next_broker_goes_on_with_the_copy(tmp_path: Path, postgres_url: str) -> None:
    """From the first one's first look on, every event of both is copied once; a required sink has a gate at each."""
    async with Collector() as collector:
        async with starting(copying(configured(tmp_path / "one", postgres_url), collector)) as first:
            assert isinstance(first.stores.audit.gate, SinkGate)
            await until(lambda: first.stores.stored_events.position("collector"))
            before = len(await recorded(first))
        async with starting(copying(configured(tmp_path / "two", postgres_url), collector)) as second:
            events = await recorded(second)
            assert len(events) >= before + 2  # the stop of one, the start of the other

            async def whole() -> bool:
                there, events = copied(collector), await recorded(second)
                return len(there) >= 2 and there == events[-len(there) :]

            await until(whole)
        assert {*events[before:]} <= {*copied(collector)}
