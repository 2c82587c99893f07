"""A service that watches its certificates at one of two brokers: told of what the other one does, and when one is killed.

Two broker programs on one PostgreSQL, issuing for real; the service is a call of this process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml

from certplane.sandbox.deployment import Finished, run_program
from certplane.sandbox.postgres import PostgresCluster
from certplane.v1 import fleet_pb2, fleet_pb2_grpc, renewal_pb2
from tests.support.database_servers import DATABASE
from tests.support.fleet import OPERATOR, Fleet, policy_of
from tests.support.parts import need_part
from tests.support.service_watch import ServiceWatch
from tests.support.several_brokers import Broker
from tests.support.waiting import HANG, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

API = "api.certplane.test"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    need_part("pebble")
    policy = policy_of({"web": ["www.certplane.test"]}, {})
    policy["services"] = {"api": {"identity": API, "profiles": ["web"]}}
    del policy["hosts"]
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        url = await cluster.create_database(DATABASE)
        async with Fleet.running(tmp_path_factory.mktemp("service-watches"), policy, [url] * 2) as made:
            await made.enroll(API, OPERATOR)
            yield made


async def shown(fleet: Fleet, broker: Broker) -> Any:
    """The service as a broker shows it; None where it doesn't."""
    async with fleet.channel(OPERATOR, broker) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        wanted = fleet_pb2.FleetFilter(kinds=[renewal_pb2.HOST_KIND_SERVICE])
        answer = await stub.ListHosts(fleet_pb2.ListHostsRequest(filter=wanted), timeout=HANG)
        return answer.hosts[0] if answer.hosts else None


async def until_shown(fleet: Fleet, broker: Broker, *, connected: bool) -> Any:
    async def so() -> Any:
        found = await shown(fleet, broker)
        return found if found is not None and found.connected is connected else None

    return await until(so, poll=0.2, what=f"the service, connected: {connected}")


async def certplanectl(fleet: Fleet, broker: Broker, folder: Path, *arguments: str) -> Finished:
    """A command of the operator's to its end."""
    credential = await fleet.identity(OPERATOR)
    (folder / "operator.crt").write_bytes(credential.chain_pem)
    key = folder / "operator.key"
    key.touch(mode=0o600)
    key.write_bytes(credential.key_pem)
    root = fleet.deployment.broker_folder / "root.crt"
    settings = {
        "broker": {"url": broker.url, "server_ca_bundle": str(root)},
        "identity": {"cert": str(folder / "operator.crt"), "key": str(key)},
    }
    config = folder / "ctl.yml"
    config.write_text(yaml.safe_dump(settings))
    return await run_program(["-m", "certplane.ctl", "-c", str(config), *arguments], {"COLUMNS": "200"})


async def test_a_service_is_told_whichever_broker_is_there(fleet: Fleet, tmp_path: Path) -> None:
    """Of what the other one does at once; when its broker is killed it is away until it watches at the other.

    What it is asked for stands there, in what it hears first.
    """
    here, there = fleet.brokers
    leaf = await fleet.certificate(API, "web", fleet.csr("www.certplane.test"), there)
    async with fleet.channel(API, here) as channel:
        watch = ServiceWatch(channel, client_version="api/1.2")
        (first,) = await watch.until_listening()
        assert first.serial_number == format(leaf.serial_number, "x")
        assert (await until_shown(fleet, there, connected=True)).agent_version == "api/1.2"

        revoked = await certplanectl(
            fleet, there, tmp_path, "revoke", first.certificate_id, "--reason", "drill", "--yes"
        )
        assert revoked.status == 0, revoked.stdout + revoked.stderr
        told = await watch.news()
        assert told.certificate_id == first.certificate_id
        assert told.HasField("revoke_time")

        newer = await fleet.certificate(API, "web", fleet.csr("www.certplane.test"), there)
        told = await watch.news(lambda news: not news.HasField("revoke_time"))
        assert told.serial_number == format(newer.serial_number, "x")

        asked = await fleet.ask_for_renewal(there, hosts=[API])
        assert (asked.connected_service_count, asked.held_up_count) == (1, 0)
        told = await watch.news(lambda news: news.renewal_request_id)
        assert told.renewal_request_id == asked.renewal_request_id

        here.process.kill()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.until(lambda _: False)
        assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)

    await fleet.until_leases_end(1)
    away = await until_shown(fleet, there, connected=False)
    assert away.HasField("disconnect_time")
    async with fleet.channel(API, there) as channel:
        watch = ServiceWatch(channel)
        known = {news.certificate_id: news for news in await watch.until_listening()}
        assert known[told.certificate_id].renewal_request_id == asked.renewal_request_id
        assert known[first.certificate_id].HasField("revoke_time")
        await here.start()
        host = await until_shown(fleet, here, connected=True)
        assert (host.broker_address.rpartition(":")[2], host.watch_count) == (str(there.port), 1)
        row = await certplanectl(fleet, here, tmp_path, "fleet", "--kind", "service", "--output", "table")
        assert "service, up" in row.stdout, row.stdout + row.stderr
        summary = await certplanectl(fleet, here, tmp_path, "summary", "--output", "table")
        assert "1 service, 1 listening" in summary.stdout, summary.stdout + summary.stderr
    fleet.assert_no_tracebacks()
