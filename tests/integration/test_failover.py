"""Two issuers behind their own fault proxies: what moves an order from the first to the second, over real ACME."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.events import AuditEventType
from certplane.broker.model import OrderState
from certplane.errors import Reason
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import CHALLENGE, FINALIZE, NEW_ORDER, ORDER
from certplane.sandbox.fault_proxy import Action, FaultProxy
from certplane.sandbox.pebble import Pebble
from tests.support.moods import Moody, two_issuers

pytestmark = [pytest.mark.integration]

Worlds = tuple[Moody, FaultProxy]


@pytest_asyncio.fixture
async def worlds(tmp_path: Path, trusting_pebble: Pebble) -> AsyncIterator[Worlds]:
    async with two_issuers(tmp_path, trusting_pebble) as made:
        yield made


@pytest.mark.parametrize(
    ("action", "endpoint"),
    [
        pytest.param(faults.cut(), NEW_ORDER, id="connections-are-cut"),
        pytest.param(faults.answer(503), NEW_ORDER, id="503"),
        pytest.param(faults.html(), NEW_ORDER, id="an-html-page"),
        pytest.param(faults.answer(500), CHALLENGE, id="500-at-the-challenge"),
        pytest.param(
            faults.problem("rateLimited", "too many orders", status=429, retry_after=timedelta(hours=3)),
            NEW_ORDER,
            id="limited-for-hours",
        ),
        pytest.param(
            faults.problem("userActionRequired", "there are new terms", status=403), NEW_ORDER, id="new-terms"
        ),
    ],
)
async def test_the_second_issues_when_the_first_does_not(
    worlds: Worlds, own_name: str, action: Action, endpoint: str
) -> None:
    """The order ends ISSUED by the second issuer, the log says why, and only one CSR was ever sent."""
    world, second = worlds
    world.proxy.add(action, endpoint, times=None)
    order = await world.issue(own_name)
    assert (order.state, order.issuer) == (OrderState.ISSUED, "second")
    assert (world.proxy.count(FINALIZE), second.count(FINALIZE)) == (0, 1)
    moved = [each for each in world.database.events if each.event_type is AuditEventType.ISSUER_FAILED_OVER]
    assert [(each.issuer_name, each.order_id) for each in moved] == [("first", order.order_id)]
    assert not world.dns.visible()


async def test_a_name_that_the_first_refuses_is_not_taken_elsewhere(worlds: Worlds, own_name: str) -> None:
    """RejectedIdentifier ends the order with the CA's words, and the second CA never hears of the name."""
    world, second = worlds
    world.proxy.add(faults.problem("rejectedIdentifier", "not this name", status=400), NEW_ORDER)
    order = await world.issue(own_name)
    assert (order.state, order.issuer) == (OrderState.FAILED, "first")
    assert order.error is not None
    assert order.error.reason is Reason.ISSUER_REJECTED
    assert second.count(NEW_ORDER) == 0


async def test_an_order_whose_csr_was_sent_stays(worlds: Worlds, own_name: str) -> None:
    """A first issuer that falls silent after the finalisation is waited for: the key never gets two certificates."""
    world, second = worlds
    world.proxy.add(faults.swallowed(), FINALIZE)
    world.proxy.add(faults.answer(503), ORDER, times=6)
    order = await world.issue(own_name)
    assert (order.state, order.issuer) == (OrderState.ISSUED, "first")
    assert (world.proxy.count(FINALIZE), second.count(NEW_ORDER)) == (1, 0)


async def test_later_orders_spare_an_issuer_that_is_out(worlds: Worlds, own_name: str) -> None:
    """The order that found out is the only one that waits: the next goes to the second at once."""
    world, second = worlds
    world.proxy.add(faults.answer(503), NEW_ORDER, times=None)
    await world.issue(f"a.{own_name}")
    asked = world.proxy.count(NEW_ORDER)
    order = await world.issue(f"b.{own_name}")
    assert order.issuer == "second"
    assert world.proxy.count(NEW_ORDER) == asked
    assert second.count(NEW_ORDER) == 2
