"""Streams of hosts over several brokers that share a database: reports, directives and views while brokers come and go.

Four broker programs on one PostgreSQL. The hosts are streams of this process, which say and hear what a test wants.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
import pytest_asyncio

from certplane.rpc.credentials import KeyPair
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.postgres import PostgresCluster
from tests.support.audit_rows import AUDIT_ROWS, records
from tests.support.cable import Cable
from tests.support.database_servers import DATABASE
from tests.support.fleet import OPERATOR, Fleet, policy_of
from tests.support.killing import order_of, stopping_at
from tests.support.parts import need_part
from tests.support.reporting_hosts import ReportingHost, has_acknowledged
from tests.support.streams import HostStreamClient
from tests.support.waiting import no_hang, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

STILL = [f"still{number}.certplane.test" for number in range(24)]
KILLED = [f"killed{number}.certplane.test" for number in range(24)]
MOVING, DIRECTED, CUT = "moving.certplane.test", "directed.certplane.test", "cut.certplane.test"
PROFILES = ["web", *(f"web{number}" for number in range(4))]
REPORTS = 12
PLACES = ("report.store.before", "report.store.written", "report.store.after")
"""Where brokers stand still with a report: taken and not written, written and not committed, durable and not told."""
KILLS = 3
PATIENCE = 5.0
"""Seconds of a host that isn't answered; a real agent's heartbeat takes minutes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    need_part("pebble")
    hosts = [*STILL, *KILLED, MOVING, DIRECTED, CUT]
    profiles = {name: [f"{name}.certplane.test"] for name in PROFILES}
    policy = policy_of(profiles, {name: PROFILES if name == DIRECTED else ["web"] for name in hosts})
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        url = await cluster.create_database(DATABASE)
        async with Fleet.running(tmp_path_factory.mktemp("fleet-streams"), policy, [url] * 4) as made:
            await made.enroll(*hosts, OPERATOR)
            yield made


async def running(fleet: Fleet) -> None:
    """Start those that were killed."""
    await asyncio.gather(*(broker.start() for broker in fleet.brokers if not broker.process.running))


@asynccontextmanager
async def reporting(fleet: Fleet, names: Sequence[str]) -> AsyncIterator[list[ReportingHost]]:
    """Hosts of these names, which begin to report at once."""
    roots = (fleet.deployment.broker_folder / "root.crt").read_bytes()
    hosts = []
    for number, name in enumerate(names):
        credential = await fleet.identity(name)
        pair = KeyPair(credential.key_pem, credential.chain_pem)
        rng = random.Random(number)
        hosts.append(ReportingHost(name, fleet.urls, roots, pair, rng, reports=REPORTS, patience=PATIENCE))
    try:
        async with no_hang(), asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(host.run())
            yield hosts
    finally:
        for host in hosts:
            await host.close()


async def assert_each_report_once(fleet: Fleet, names: Sequence[str]) -> None:
    """The database has each host's last sequence, and the audit log each certificate that it told of once."""
    rows = await fleet.query("SELECT host, acknowledged_sequence FROM report_sequences")
    assert {host: sequence for host, sequence in rows if host in names} == dict.fromkeys(names, REPORTS)
    told = Counter(
        (record["identity"], record["cert_serial_number"])
        for record in records(await fleet.query(AUDIT_ROWS))
        if record["event_type"] == "renewal_reported" and record["identity"] in names
    )
    assert told == Counter({(name, f"{serial:x}"): 1 for name in names for serial in range(1, REPORTS + 1)})


async def test_brokers_that_stood_still_with_a_report_write_and_acknowledge_nothing(fleet: Fleet) -> None:
    """Their hosts say it again at the broker that is left; what the others do awake changes nothing, and locks nothing."""
    *sleepers, left = fleet.brokers
    await running(fleet)
    await asyncio.gather(*(broker.start(stopping_at(place)) for broker, place in zip(sleepers, PLACES, strict=True)))
    async with reporting(fleet, STILL) as hosts:
        for broker in sleepers:
            await broker.until_still()
            broker.stop_still()
        assert not has_acknowledged(hosts, len(STILL) * REPORTS), "they stood still too late to be of interest"
    await assert_each_report_once(fleet, STILL)
    assert await fleet.connected(left) == set()
    await fleet.until_leases_end(1)
    for broker in sleepers:
        broker.go_on()
    await asyncio.gather(*(broker.until_leased_again() for broker in sleepers))
    await assert_each_report_once(fleet, STILL)
    for broker in fleet.brokers:
        assert await fleet.connected(broker) == set()
    fleet.assert_no_tracebacks()


async def test_no_report_is_lost_or_doubled_by_kills(fleet: Fleet) -> None:
    """Brokers killed one after the other in the midst of it, and started again: the hosts report on at the others."""
    await running(fleet)
    rng = random.Random(11)
    total = len(KILLED) * REPORTS
    async with reporting(fleet, KILLED) as hosts:
        for kill in range(KILLS):
            enough = total * (kill + 1) // (KILLS + 2)
            await until(partial(has_acknowledged, hosts, enough), what=f"{enough} acknowledgements")
            broker = rng.choice(fleet.brokers)
            broker.process.kill()
            await broker.start()
    assert sum(host.streams for host in hosts) > len(hosts), "hosts moved"
    await assert_each_report_once(fleet, KILLED)
    for host in (await fleet.hosts(fleet.brokers[0])).values():
        assert (host.displaced_streams, host.contested) == (0, False), host.name


async def test_a_host_that_moves_is_at_one_broker_for_all(fleet: Fleet) -> None:
    """Its first stream ends within a look at the feed, no broker counts a second holder, and all show where it is."""
    await running(fleet)
    first, second, *_ = fleet.brokers
    async with fleet.channel(MOVING, first) as one, fleet.channel(MOVING, second) as other:
        before = HostStreamClient(one)
        await before.hello()
        await before.acknowledged(await before.report())
        after = HostStreamClient(other)
        welcome = await after.hello()
        assert welcome.acknowledged_sequence == before.last
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await before.end()
        assert ended.value.code() is grpc.StatusCode.ABORTED
        assert "STREAM_DISPLACED" in repr(ended.value.trailing_metadata())
        after.sequences = before.sequences
        await after.acknowledged(await after.report())
        for broker in fleet.brokers:
            host = (await fleet.hosts(broker))[MOVING]
            assert (host.connected, host.displaced_streams, host.contested) == (True, 0, False)
        await after.call.done_writing()

    async def gone() -> bool:
        return all([MOVING not in await fleet.connected(broker) for broker in fleet.brokers])

    await until(gone, poll=0.2, what="the end of the stream, seen at all brokers")


async def test_a_host_that_is_cut_off_from_one_broker_goes_on_at_another(fleet: Fleet) -> None:
    """A cable that is pulled: neither end hears of it, and the broker lets go of the stream when the host is elsewhere."""
    await running(fleet)
    first, second, *_ = fleet.brokers
    async with Cable.to(LOOPBACK, first.port) as cable, fleet.channel(CUT, cable) as one:
        before = HostStreamClient(one)
        await before.hello()
        await before.acknowledged(await before.report())
        cable.pull()
        await before.report()  # which arrives when the host is long elsewhere
        async with fleet.channel(CUT, second) as other:
            after = HostStreamClient(other)
            assert (await after.hello()).acknowledged_sequence == 1
            after.sequences = before.sequences
            await after.acknowledged(await after.report(serial="3e8"))
            cable.plug()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await before.end()
            assert ended.value.code() is grpc.StatusCode.ABORTED
            (host,) = [each for name, each in (await fleet.hosts(first)).items() if name == CUT]
            assert (host.connected, host.displaced_streams, host.contested) == (True, 0, False)
            (web,) = [each for each in host.certificates if each.name == "web"]
            assert web.installed.serial_number == "3e8", "what came late is not the newest"


async def test_a_directive_reaches_its_host_at_any_broker(fleet: Fleet) -> None:
    """An operator asks each broker in turn; the host, whose stream is at another one, hears of each renewal."""
    await running(fleet)
    for number, asked in enumerate(fleet.brokers):
        profile = f"web{number}"
        leaf = await fleet.certificate(DIRECTED, profile, fleet.csr(f"{profile}.certplane.test"), asked)
        record, _ = await order_of(fleet.deployment, leaf)
        async with fleet.channel(DIRECTED, fleet.brokers[number - 1]) as channel:
            host = HostStreamClient(channel, epoch=f"epoch-{number}")
            await host.hello(*PROFILES)
            answer = await fleet.ask_for_renewal(asked, certificate_ids=[record.certificate_id])
            assert (answer.changed_count, answer.connected_host_count) == (1, 1)
            async with no_hang():
                while record.certificate_id not in await told(host):
                    pass


async def told(host: HostStreamClient) -> set[str]:
    """The certificates that the next directive names, which the host takes over."""
    directive = await host.directive()
    await host.answer(directive.nonce)
    return {each.certificate_id for each in directive.renewals}
