"""Three brokers, a PostgreSQL with a standby, and sixty agents: brokers restarted, killed, stopped, and the database lost.

The agents are real ones, all in one program (`tests.support.agent_crowd`); each has a certificate of its own. What must
hold in the end of each test: every host is connected and has what it was to have, every order has ended once, every
report is known, and nothing is left in the DNS.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from certplane.rpc.choice import AVOID
from tests.support.crowd import Crowd, crowd_policy, names_of
from tests.support.database_servers import ServerPair, server_pair
from tests.support.fleet import OPERATOR, Fleet
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOSTS = 60
BROKERS = 3
NAMES = names_of(HOSTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerPair]:
    async with server_pair(tmp_path_factory.mktemp("servers")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowd(servers: ServerPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crowd]:
    need_part("pebble")
    folder = tmp_path_factory.mktemp("fleet-restarts")
    async with AsyncExitStack() as stack:
        fleet = Fleet.running(folder, crowd_policy(HOSTS), [servers.place.url] * BROKERS)
        made = Crowd(await stack.enter_async_context(fleet), HOSTS)
        await made.fleet.enroll(OPERATOR)
        stack.push_async_callback(made.stop)
        await made.start()
        yield made


async def issued(crowd: Crowd) -> int:
    """How many certificates the CA has made, once nothing is under way."""
    await crowd.fleet.until_settled()
    return len(crowd.fleet.deployment.pebble.log.issued)


async def test_a_rolling_restart_loses_nothing(crowd: Crowd) -> None:
    """Each broker is restarted once it was asked to renew a third: each host finds another one before it must wait."""
    before = await issued(crowd)
    begun = asyncio.get_running_loop().time()
    for number, broker in enumerate(crowd.fleet.brokers):
        third = NAMES[number::BROKERS]
        old = await crowd.renew(third, at=broker)
        await broker.start()
        assert "Traceback" not in broker.process.log.read_text()
        await crowd.until_settled(*third, old=old)
    assert crowd.longest_without(begun) < AVOID.total_seconds()
    await crowd.assert_sound(before + HOSTS)


async def test_brokers_that_die_and_stand_still_lose_nothing(crowd: Crowd) -> None:
    """One is killed, one stands still for longer than its lease, while hosts renew: the third one ends what they had."""
    before = await issued(crowd)
    killed, still, left = random.Random(5).sample(crowd.fleet.brokers, BROKERS)
    half = NAMES[::2]
    old = await crowd.renew(half)
    await until(lambda: len(crowd.fleet.deployment.pebble.log.issued) > before, what="renewals under way")
    killed.process.kill()
    still.stop_still()
    await crowd.fleet.until_leases_end(1)
    still.go_on()
    await still.until_leased_again()
    await killed.start()
    await crowd.until_settled(*half, old=old)
    await crowd.assert_sound(before + len(half))
    assert "Traceback" not in left.log


async def test_the_standby_is_promoted_under_load(crowd: Crowd, servers: ServerPair) -> None:
    """The primary dies while hosts renew: what was acknowledged is at the standby, and all goes on there."""
    before = await issued(crowd)
    half = NAMES[1::2]
    old = await crowd.renew(half)
    await until(lambda: len(crowd.fleet.deployment.pebble.log.issued) > before, what="renewals under way")
    servers.primary.crash()
    await servers.standby.promote()
    await crowd.until_settled(*half, old=old)
    await crowd.assert_sound(before + len(half))
    crowd.fleet.assert_no_tracebacks()
