"""Brokers of this release and of a later one on one database: upgraded one by one, and back; and what isn't allowed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from certplane import __version__
from certplane.sandbox.deployment import run_program
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc
from tests.support.fleet import OPERATOR, Fleet, policy_of
from tests.support.killing import killing_at
from tests.support.next_release import NEXT_REVISION, NEXT_VERSION, next_release
from tests.support.parts import need_part
from tests.support.several_brokers import Broker
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.e2e

_HOST = "web1.certplane.test"
_NAMES = ["www.certplane.test"]
_POLICY = policy_of({"web": _NAMES}, {_HOST: ["web"]})


async def _brokers(fleet: Fleet, broker: Broker) -> pb.ListBrokersResponse:
    async with fleet.channel(OPERATOR, broker) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        answer: pb.ListBrokersResponse = await stub.ListBrokers(pb.ListBrokersRequest(), timeout=HANG)
        return answer


async def _each_issues(fleet: Fleet, *brokers: Broker) -> None:
    for broker in brokers:
        await fleet.certificate(_HOST, "web", fleet.csr(*_NAMES), broker)


async def _revision(fleet: Fleet) -> str:
    ((revision,),) = await fleet.query("SELECT version_num FROM alembic_version")
    return str(revision)


async def _refused_start(broker: Broker, environment: dict[str, str]) -> str:
    """What a start says that ends at once."""
    command = ["-P", "-m", "certplane.broker", "-c", str(broker.config), "serve"]
    deployment = broker.deployment
    finished = await run_program(command, {**deployment.broker_environment, **environment}, python=deployment.python)
    assert finished.status == 2, finished.stderr
    return finished.stderr


async def test_brokers_are_upgraded_one_by_one_and_back(tmp_path: Path, postgres_url: str) -> None:
    """The later one migrates while the other serves, and both issue. The older one starts again, and takes its place."""
    need_part("pebble")
    later = next_release(tmp_path / "later")
    async with Fleet.running(tmp_path / "fleet", _POLICY, [postgres_url] * 2) as fleet:
        staying, upgraded = fleet.brokers
        await _each_issues(fleet, staying, upgraded)
        assert not (await _brokers(fleet, staying)).differences

        await upgraded.start(later)
        assert await _revision(fleet) == NEXT_REVISION
        await _each_issues(fleet, staying, upgraded)
        for broker in fleet.brokers:
            answer = await _brokers(fleet, broker)
            assert {each.version for each in answer.brokers} == {__version__, NEXT_VERSION}
            assert [each.subject for each in answer.differences] == [pb.BrokerDifference.SUBJECT_VERSION]
        await until(lambda: "versions differ" in staying.log, what="the line of the one that stays")

        await staying.start()  # as after a crash of its machine
        assert f"the database has the schema {NEXT_REVISION} of a newer certplane-broker" in staying.log
        await _each_issues(fleet, staying, upgraded)

        # The way back, from the midst of an order: what the later one has begun, the older ones end.
        await upgraded.start({**later, **killing_at("order.finalize.before")})
        csr = fleet.csr(*_NAMES)
        asking = asyncio.create_task(fleet.certificate(_HOST, "web", csr, upgraded, staying))
        await until(lambda: not upgraded.process.running, what="the kill")
        await upgraded.start()
        await asking
        await _each_issues(fleet, staying, upgraded)
        assert not (await _brokers(fleet, upgraded)).differences
        assert await _revision(fleet) == NEXT_REVISION

        await fleet.until_settled()
        await fleet.assert_nothing_doubled()
        fleet.assert_no_tracebacks()


async def test_a_release_that_removes_something_waits_for_the_older_ones(tmp_path: Path, postgres_url: str) -> None:
    """It is refused while one runs, and names it; afterwards the older one is refused, with what the database needs."""
    need_part("pebble")
    later = next_release(tmp_path / "later", removes=True)
    async with Fleet.running(tmp_path / "fleet", _POLICY, [postgres_url] * 2) as fleet:
        older, newer = fleet.brokers
        await newer.process.stop()
        said = await _refused_start(newer, later)
        assert "brokers of an older release run that can't use the new schema" in said
        assert f":{older.port} (version {__version__})" in said
        await _each_issues(fleet, older)
        await older.process.stop()
        await newer.start(later)
        await _each_issues(fleet, newer)
        said = await _refused_start(older, {})
        needs = f"(schema {NEXT_REVISION}, which programs of schema {NEXT_REVISION} and newer can use)"
        assert f"the database was written by a newer certplane-broker {needs}" in said
        await fleet.until_settled()
