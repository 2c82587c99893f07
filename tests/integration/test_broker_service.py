"""`BrokerService` at whole brokers of one database: reloads of all, out of service and back, and plans of a bundle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certplane.broker.app import Broker
from certplane.broker.members import requests
from certplane.errors import Reason
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.v1 import broker_pb2 as pb
from certplane.v1 import broker_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.integration.test_broker_reload import connected, events, refused
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.ca import PrivateCa
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, until
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration

TEXT = POLICY.replace("roles: [guest]", "roles: [operator]")


class Site:
    """Brokers of one database, and an operator's stub at the first."""

    def __init__(self, brokers: list[Broker], files: list[BrokerFiles], stub: Any) -> None:
        self.brokers, self.files, self.stub = brokers, files, stub

    @property
    def ids(self) -> list[str]:
        return [broker.stores.members.broker_id for broker in self.brokers]

    async def reload(self, **fields: Any) -> list[Any]:
        answer = await self.stub.ReloadBrokers(pb.ReloadBrokersRequest(**fields), timeout=HANG)
        return list(answer.reloads)


def credentials(files: BrokerFiles, name: str) -> Any:
    return channel_credentials(files.ca.root_pem, files.ca.issue([name]).pair)


@asynccontextmanager
async def site(tmp_path: Path, url: str, count: int) -> AsyncIterator[Site]:
    files = [configured(tmp_path / f"broker{number}", url) for number in range(count)]
    async with AsyncExitStack() as stack:
        brokers = []
        for each in files:
            each.policy.write_text(TEXT)
            brokers.append(await stack.enter_async_context(starting(each)))
        channel = open_channel(f"https://localhost:{brokers[0].port}", credentials(files[0], "admin.certplane.test"))
        stub = broker_pb2_grpc.BrokerServiceStub(await stack.enter_async_context(channel))
        yield Site(brokers, files, stub)


@pytest.fixture
async def two(tmp_path: Path, postgres_url: str) -> AsyncIterator[Site]:
    async with site(tmp_path, postgres_url, 2) as made:
        yield made


async def test_all_brokers_reload(two: Site) -> None:
    """Each answers for itself: what one refuses and another takes is told of both, and audited where it was done."""
    two.files[0].policy.write_text(TEXT + "# changed\n")
    two.files[1].policy.write_text("hosts: {}\n")
    first, second = sorted(await two.reload(all=True, request_id="r-7"), key=lambda each: two.ids.index(each.broker_id))
    assert (first.done, second.done) == (True, False)
    assert first.broker_name == second.broker_name != ""
    assert f"policy loaded, hash {two.brokers[0].policy.current.hash}" in "\n".join(first.lines)
    assert "gives nothing to anybody" in "\n".join(second.lines)
    told = [event for event in await events(two.brokers[0]) if event.get("request_id") == "r-7"]
    assert sorted({event["event_type"] for event in told}) == ["policy_loaded", "policy_rejected", "trust_reloaded"]
    assert {event["identity"] for event in told} == {"admin.certplane.test"}


async def test_a_reload_that_is_to_be_confirmed(two: Site) -> None:
    """What removes much is refused at the other broker as here; with `confirm` it is taken."""
    text = TEXT.replace(
        "operators:", "".join(f"  m{n}: {{identity: m{n}.test, profiles: [web]}}\n" for n in range(9)) + "operators:"
    )
    two.files[1].policy.write_text(text)
    assert (await two.brokers[1].reloader.request()).ok
    two.files[1].policy.write_text(TEXT)
    (asked,) = await two.reload(broker_ids=[two.ids[1]])
    assert (asked.done, asked.confirmation_required) == (False, True)
    (taken,) = await two.reload(broker_ids=[two.ids[1]], confirm=True)
    assert taken.done


async def test_a_broker_that_is_not_there_is_named(two: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails, one that doesn't answer in time, and an id of none."""
    monkeypatch.setattr(requests, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(two.brokers[1].desk.requests, "_carry_out", _fail)
    (broken,) = await two.reload(broker_ids=[two.ids[1]])
    assert (broken.done, list(broken.lines)) == (False, ["failed on an unexpected error; this broker's log has it"])
    monkeypatch.setattr(two.brokers[1].desk.requests, "_carry_out", lambda _: asyncio.Event().wait())
    silent, none = await two.reload(broker_ids=[two.ids[1], "nobody"])
    assert (silent.broker_id, silent.done) == (two.ids[1], False)
    assert "gave no answer in time" in silent.lines[0]
    assert (none.broker_id, none.broker_name, none.done) == ("nobody", "", False)
    assert "is no broker of this fleet that runs" in none.lines[0]
    (own,) = await two.reload()
    assert (own.broker_id, own.done) == (two.ids[0], True)


async def _fail(_: object) -> Any:
    raise RuntimeError("a bug")


async def test_out_of_service_and_back(two: Site) -> None:
    """Hosts are sent away and not taken, health says so, the fleet sees it; the last broker stays; then it serves again."""
    other = two.brokers[1]
    async with connected(other, two.files[1]) as channel:
        host = HostStreamClient(channel)
        await host.hello()
        await until(lambda: len(other.hub.registry) == 1)
        drain = pb.DrainBrokerRequest(broker_id=two.ids[1], reason="a new kernel")
        answer = await two.stub.DrainBroker(drain, timeout=HANG)
        assert (answer.draining, answer.stream_count) == (True, 1)
        while (message := await host.read()).WhichOneof("message") != "goodbye":
            pass
        assert message.goodbye.reason == "the broker is being taken out of service"
        again = HostStreamClient(channel)
        assert await refused(again.hello()) is Reason.DRAINING
        health: Any = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest(service="certplane.v1.CertificateService")
        assert (await health.Check(check, timeout=HANG)).status == health_pb2.HealthCheckResponse.NOT_SERVING

        assert await refused(two.stub.DrainBroker(pb.DrainBrokerRequest(reason="mine"), timeout=HANG)) is (
            Reason.REQUEST_INVALID
        )
        shown = await _brokers(two)
        assert [each.draining for each in shown] == [each.broker_id == two.ids[1] for each in shown]

        back = pb.DrainBrokerRequest(broker_id=two.ids[1], reason="done", undo=True)
        assert not (await two.stub.DrainBroker(back, timeout=HANG)).draining
        assert (await health.Check(check, timeout=HANG)).status == health_pb2.HealthCheckResponse.SERVING
        await HostStreamClient(channel).hello()
    kinds = [event["event_type"] for event in await events(other)]
    assert [kind for kind in kinds if kind.startswith(("broker_d", "broker_r"))] == [
        "broker_drained",
        "broker_resumed",
    ]


async def _brokers(made: Site) -> list[Any]:
    operator = credentials(made.files[0], "admin.certplane.test")
    async with open_channel(f"https://localhost:{made.brokers[0].port}", operator) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        return list((await stub.ListBrokers(fleet_pb2.ListBrokersRequest(), timeout=HANG)).brokers)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(pb.ReloadBrokersRequest(all=True, broker_ids=["a"]), id="all and one"),
        pytest.param(pb.ReloadBrokersRequest(broker_ids=["a"] * 101), id="many"),
        pytest.param(pb.DrainBrokerRequest(reason=""), id="no reason"),
        pytest.param(pb.DrainBrokerRequest(reason="x", broker_id="nobody"), id="no broker"),
        pytest.param(pb.DrainBrokerRequest(reason="x"), id="the only broker"),
        pytest.param(pb.PlanTrustBundleRequest(), id="no bundle"),
    ],
)
async def test_a_bad_request_is_named(files: BrokerFiles, request_: Any) -> None:
    """Each is REQUEST_INVALID, on SQLite, whose one broker is the last."""
    files.policy.write_text(TEXT)
    async with starting(files) as broker, connected(broker, files, files.ca.issue(["admin.certplane.test"])) as channel:
        stub: Any = broker_pb2_grpc.BrokerServiceStub(channel)
        method = getattr(stub, type(request_).__name__.removesuffix("Request"))
        assert await refused(method(request_, timeout=HANG)) is Reason.REQUEST_INVALID


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


async def test_a_bundle_is_planned(files: BrokerFiles) -> None:
    """Which CAs come and go, whom that shuts out, and whether it would be asked about; a text that is none says why."""
    files.policy.write_text(TEXT)
    successor = PrivateCa("successor")
    async with starting(files) as broker, connected(broker, files) as channel:
        await HostStreamClient(channel).hello()
        await until(lambda: len(broker.hub.registry) == 1)
        async with connected(broker, files, files.ca.issue(["admin.certplane.test"])) as operator:
            stub: Any = broker_pb2_grpc.BrokerServiceStub(operator)

            async def plan(pem: bytes) -> Any:
                return await stub.PlanTrustBundle(pb.PlanTrustBundleRequest(bundle_pem=pem.decode()), timeout=HANG)

            both = await plan(files.ca.root_pem + successor.root_pem)
            assert (both.shut_out_count, both.confirmation, len(both.cas)) == (0, "", 2)
            new = await plan(successor.root_pem)
            wrong = await plan(b"-----BEGIN CERTIFICATE-----\n")
    assert [(ca.before, ca.after, ca.host_count) for ca in new.cas] == [(True, False, 1), (False, True, 0)]
    assert (new.shut_out_count, new.shut_out_connected_count, list(new.shut_out_hosts)) == (
        1,
        1,
        ["web1.certplane.test"],
    )
    assert new.confirmation.startswith("would shut out 1 of 1 connected host")
    assert (len(wrong.problems), len(wrong.cas)) == (1, 0)
    assert broker.trust.bundle.hash != new.trust_hash
