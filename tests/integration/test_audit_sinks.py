"""Whole brokers of one database copy its audit log to a real collector, one after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from certplane.broker.app import Broker, open_broker
from certplane.broker.identity_commands import allow_identity, deny_identity, identity_entry
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.broker.sinks import forwarding, gate
from certplane.broker.sinks.gate import SinkGate
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.rpc.status import refusal_from_error
from certplane.runtime.backoff import Backoff
from certplane.v1 import certificate_pb2
from certplane.v1.certificate_pb2_grpc import CertificateServiceStub
from tests.support.broker_files import BrokerFiles
from tests.support.log_receivers import Collector
from tests.support.waiting import HANG, until
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


async def asked_for(channel: grpc.aio.Channel) -> Reason | None:
    """Why a host gets no order for its certificate; None if it has one."""
    csr = build_csr(generate_private_key(KeyType.EC_P256), sans=["a.certplane.test", "b.certplane.test"])
    request = certificate_pb2.IssueCertificateRequest(profile="web", csr_pem=csr)
    request.wait_duration.seconds = 0
    try:
        await CertificateServiceStub(channel).IssueCertificate(request, timeout=HANG)
    except grpc.aio.AioRpcError as error:
        return getattr(refusal_from_error(error), "reason", Reason.INTERNAL)
    return None


@pytest.fixture(params=["sqlite", "postgresql"])
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> BrokerFiles:
    """A broker on a database of each kind."""
    if request.param == "sqlite":
        return BrokerFiles(tmp_path)
    return configured(tmp_path / "one", request.getfixturevalue("postgres_url"))


async def test_a_required_sink_that_is_away_holds_orders_up(
    alone: BrokerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is told, and so is the operator; what was decided before is copied when it is back, and orders go on."""
    monkeypatch.setattr(gate, "_LOOK", timedelta(milliseconds=100))
    monkeypatch.setattr(forwarding, "_BACKOFF", Backoff(timedelta(milliseconds=100), timedelta(milliseconds=200)))
    files, archive = alone, tmp_path / "audit.jsonl"
    archive.mkdir()  # so that it can't be written
    files.settings.setdefault("audit", {})["sinks"] = {"archive": {"file": {"path": str(archive)}, "required": True}}
    files.write()
    settings = load_settings(files.config)
    briefly = {name: replace(sink, max_lag=timedelta(seconds=1)) for name, sink in settings.audit.sinks.items()}
    settings = replace(settings, audit=replace(settings.audit, sinks=briefly))
    async with open_broker(prepare(settings)) as broker:

        def holds_up() -> float | None:
            return broker.meter.registry.get_sample_value("certplane_audit_sink_holds_up", {"sink": "archive"})

        credentials = channel_credentials(files.ca.root_pem, files.identity().pair)
        async with open_channel(f"https://localhost:{broker.port}", credentials) as channel:
            await until(lambda: broker.stores.stored_events.position("archive"))
            assert await asked_for(channel) is None  # which the sink lacks from now on
            await until(lambda: holds_up() == 1)
            before = len(await recorded(broker))
            assert await asked_for(channel) is Reason.AUDIT_UNAVAILABLE
            stolen = identity_entry(name="web9.certplane.test", issuer="", serial_number="", reason="stolen")
            await deny_identity(settings, stolen)  # which takes away
            with pytest.raises(RefusalError, match="the audit sink 'archive' is required, and too far behind"):
                await allow_identity(settings, stolen)
            archive.rmdir()
            await until(lambda: holds_up() == 0)
            await allow_identity(settings, stolen)
            assert await asked_for(channel) is None

            async def whole() -> bool:
                there = [json.loads(line)["event_id"] for line in archive.read_text().splitlines()]
                events = await recorded(broker)
                return len(there) > 1 and there == events[-len(there) :]

            await until(whole)
            assert len(await recorded(broker)) > before
