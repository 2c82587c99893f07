"""Two brokers of one PostgreSQL that should be alike and aren't, as log, metrics and operators are told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.app import Broker, open_broker
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.errors import OperationError
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.ca import PrivateCa
from tests.support.edge import ShiftedClock
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

_ADMIN = "admin.certplane.test"


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


class Site:
    """A machine of a broker: its files, and the database that it shares."""

    def __init__(self, folder: Path, ca: PrivateCa, url: str, **settings: Any) -> None:
        folder.mkdir()
        self.files = BrokerFiles(folder, ca)
        self.files.settings |= {"store": {"driver": "postgresql", "url": url, "path": str(folder / "broker.db")}}
        self.files.settings |= settings
        self.files.settings["server"]["address"] = f"{LOOPBACK}:{free_port()}"
        self.files.settings["issuer"]["acme"]["account_key"] = str(folder.parent / "account.key")
        self.files.write()
        self.set_policy(POLICY.replace("roles: [guest]", "roles: [operator]"))

    def set_policy(self, text: str) -> None:
        self.files.policy.write_text(text)

    @asynccontextmanager
    async def broker(self, clock: ShiftedClock | None = None) -> AsyncIterator[Broker]:
        async with open_broker(prepare(load_settings(self.files.config)), clock=clock) as broker:
            yield broker

    async def brokers(self, broker: Broker) -> pb.ListBrokersResponse:
        """What an operator is told there."""
        credentials = channel_credentials(self.files.ca.root_pem, self.files.ca.issue([_ADMIN]).pair)
        async with open_channel(f"https://localhost:{broker.port}", credentials) as channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            answer: pb.ListBrokersResponse = await stub.ListBrokers(pb.ListBrokersRequest(), timeout=HANG)
            return answer


def _level(broker: Broker, subject: str) -> float | None:
    return broker.meter.registry.get_sample_value("certplane_brokers_differ", {"subject": subject})


async def test_two_brokers_that_differ(
    ca: PrivateCa, postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In policy and audit mode: both serve, both say so, and a reload that makes the policies alike ends it."""
    first = Site(tmp_path / "first", ca, postgres_url)
    second = Site(tmp_path / "second", ca, postgres_url, audit={"failure_mode": "fail_closed"})
    policy = second.files.policy.read_text()
    second.set_policy(policy.replace("a.certplane.test, b.certplane.test", "a.certplane.test"))
    async with first.broker() as one, second.broker() as other:
        for site, broker in ((first, one), (second, other)):
            answer = await site.brokers(broker)
            assert [each.broker_id for each in answer.brokers] == [
                one.stores.members.broker_id,
                other.stores.members.broker_id,
            ]
            assert {each.policy_hash for each in answer.brokers} == {one.policy.current.hash, other.policy.current.hash}
            assert all(each.HasField("lease_expire_time") for each in answer.brokers)
            told = [each.subject for each in answer.differences]
            assert told == [pb.BrokerDifference.SUBJECT_POLICY, pb.BrokerDifference.SUBJECT_AUDIT_MODE]
        await until(lambda: _level(one, "policy") == _level(other, "policy") == 1, what="the metric at both")
        assert sum("policies differ" in record.message for record in caplog.records) == 2

        second.set_policy(policy)
        assert (await other.reloader.request()).ok
        await until(lambda: _level(one, "policy") == _level(other, "policy") == 0, what="the policies alike at both")
        assert _level(one, "audit_mode") == 1


@pytest.mark.parametrize("shift", [timedelta(hours=1), timedelta(hours=-1)], ids=["ahead", "behind"])
async def test_a_clock_an_hour_off(ca: PrivateCa, postgres_url: str, tmp_path: Path, shift: timedelta) -> None:
    """No broker starts with it: the refusal says by how much. Nothing is written, and a broker that serves minds nothing."""
    clock = ShiftedClock()
    clock.shift = shift
    async with Site(tmp_path / "first", ca, postgres_url).broker() as broker:
        epoch, term = broker.authority._ports.epoch.current, broker.authority._ports.lease.term
        events = await broker.stores.audit.tail(100)
        with pytest.raises(OperationError, match=r"clock is 1h 0m (ahead of|behind) the database's") as caught:
            async with Site(tmp_path / "second", ca, postgres_url).broker(clock):
                pass
        assert "let a time service set" in str(caught.value)
        assert await broker.stores.audit.tail(100) == events
        assert [each.broker_id for each in await broker.stores.members.living()] == [broker.stores.members.broker_id]
        assert (broker.authority._ports.epoch.current, broker.authority._ports.lease.term) == (epoch, term)
        assert broker.authority._ports.lease.stands()


async def test_a_clock_that_is_set_while_the_broker_runs(ca: PrivateCa, postgres_url: str, tmp_path: Path) -> None:
    """By that clock its lease has ended, until the next renewal; it serves on, it is said, and no other broker minds."""
    clock = ShiftedClock()
    first, second = (Site(tmp_path / name, ca, postgres_url) for name in ("first", "second"))
    async with first.broker() as one, second.broker(clock) as other:

        def skew() -> float:
            return other.meter.registry.get_sample_value("certplane_clock_skew_seconds") or 0.0

        lease = other.authority._ports.lease
        clock.shift = timedelta(hours=1)
        assert not lease.stands()
        await until(lambda: lease.stands() and skew() > 3000, what="a renewal by the wrong clock")
        assert len(await one.stores.members.living()) == 2
        subjects = [each.subject for each in (await first.brokers(one)).differences]
        assert subjects in ([], [pb.BrokerDifference.SUBJECT_CLOCK])  # as soon as its next renewal has told it
        clock.shift = timedelta()
        await until(lambda: lease.stands() and abs(skew()) < 3000, what="a renewal by the right clock")
        assert one.authority._ports.lease.stands()


async def test_two_that_start_in_the_same_moment_on_an_empty_database(
    ca: PrivateCa, postgres_url: str, tmp_path: Path
) -> None:
    """One schema, one account, and a start of each in the audit log: both serve, and differ in nothing."""
    sites = [Site(tmp_path / name, ca, postgres_url) for name in ("first", "second")]
    ready, end = asyncio.Barrier(2), asyncio.Barrier(2)

    async def run(site: Site) -> None:
        await ready.wait()
        async with site.broker() as broker:
            await end.wait()
            answer = await site.brokers(broker)
            assert len(answer.brokers) == 2
            assert list(answer.differences) == []
            events = await broker.stores.audit.tail(100)
            assert sum(event["event_type"] == "broker_started" for event in events) == 2
            await end.wait()

    async with asyncio.TaskGroup() as group:
        for site in sites:
            group.create_task(run(site))
