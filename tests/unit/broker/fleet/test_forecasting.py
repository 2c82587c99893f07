"""Forecasts over what is kept: the ledger, certificates in force, windows and names; and `BudgetService` over those."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from certplane.broker.budget.model import Exemption, IssuerLimits, Limit, LimitScope
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.issuance.listing import OrderQuery
from certplane.broker.renewal.model import RenewalPlan, Selection
from certplane.broker.services.budget import BudgetServicer
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.rpc.times import timestamp
from certplane.runtime.pool import BlockingPool
from certplane.v1 import budget_pb2 as pb
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, kill_all, policy, settle

HOUR = timedelta(hours=1)
URL = "https://ca.test/directory"
ALL = Selection(all=True)
ORDERS = Limit("orders", LimitScope.ACCOUNT, 1, HOUR, frozenset({Exemption.ARI}))


class Named:
    """Hosts are called what they are."""

    def identities(self, name: str) -> frozenset[str]:
        return frozenset({name})

    def hosts_with(self, label: str) -> frozenset[str]:
        return frozenset()


class Fleet:
    """Two hosts with a certificate each, from a CA that makes an order an hour; and its forecasts."""

    def __init__(self, pool: BlockingPool, *limits: Limit) -> None:
        self.world = World()
        self.world.budgets[self.world.issuer.name] = IssuerLimits(self.world.issuer.name, URL, "configuration", limits)
        self.world.budgets["other"] = IssuerLimits("other", "https://other.test", "none")
        self.forecasts = Forecasts(
            self.world.stores.budget,
            self.world.plans,
            self.world.policies,
            self.world.budgets,
            pool=pool,
            clock=self.world.clock,
        )
        self.held: tuple[datetime, Refusal] | None = None
        self.servicer = BudgetServicer(
            self.forecasts, lambda _: self.held, issuers=[*self.world.budgets], named=Named(), clock=self.world.clock
        )
        self.ids: list[str] = []

    async def issued(self) -> Fleet:
        self.authority = await self.world.started()
        for number in (1, 2):
            result = await self.authority.issue(caller(f"web{number}.test"), issue(f"k{number}"))
            assert result.certificate is not None
            self.ids.append(result.certificate.certificate_id)
            self.world.clock.advance(3 * HOUR)
        return self


@pytest.fixture
async def pool() -> AsyncIterator[BlockingPool]:
    made = BlockingPool("forecasts", 1)
    yield made
    await kill_all()  # orders that wait for a place outlive no test
    made.close()


async def test_a_selection(pool: BlockingPool) -> None:
    """Each certificate in force is an order; the second waits for its hour."""
    fleet = await Fleet(pool, ORDERS).issued()
    now = fleet.world.clock.now()
    found, count = await fleet.forecasts.of_selection(ALL)
    assert (count, found.order_count, found.exempt_count) == (2, 2, 0)
    assert found.last_order_time is not None
    assert found.last_order_time >= now + HOUR
    assert found.bound_by == f"orders of {fleet.world.issuer.name}: 1 per 1h"
    moved, _ = await fleet.forecasts.of_selection(ALL, "other")
    assert (moved.last_order_time, moved.exempt_count) == (now, 2)
    one, _ = await fleet.forecasts.of_selection(Selection(certificate_ids=(fleet.ids[0],)))
    assert (one.order_count, one.last_order_time) == (1, now)


async def test_a_window_that_is_open(pool: BlockingPool) -> None:
    """A renewal that the CA knows as one takes no place; once its window is past, or at another CA, it does."""
    fleet = await Fleet(pool, ORDERS).issued()
    now = fleet.world.clock.now()
    plan = RenewalPlan(fleet.ids[0], "web1.test", now, RenewalCause.ISSUER, "", "", now - HOUR, now + HOUR)
    await fleet.world.stores.renewal_plans.set_plans([plan])
    found, _ = await fleet.forecasts.of_selection(ALL)
    assert (found.exempt_count, found.last_order_time) == (1, now)
    fleet.world.clock.advance(HOUR)
    found, _ = await fleet.forecasts.of_selection(ALL)
    assert found.exempt_count == 0


async def test_names_that_are_known(pool: BlockingPool) -> None:
    """The certificate in force shows it; of new names the orders are asked, and none has them."""
    known = replace(ORDERS, exempt=frozenset({Exemption.SAME_NAMES}))
    fleet = await Fleet(pool, known).issued()
    found, _ = await fleet.forecasts.of_selection(ALL)
    assert found.exempt_count == 2
    shop = fleet.world.policies.current.find_profile("shop")
    assert shop is not None
    fleet.world.policies.policy = policy(shop=replace(shop, dns_names=("new.test",)))
    found, _ = await fleet.forecasts.of_selection(ALL)
    assert found.exempt_count == 0


async def test_what_the_policy_no_longer_gives(pool: BlockingPool) -> None:
    """It is no order."""
    fleet = await Fleet(pool, ORDERS).issued()
    fleet.world.policies.policy = policy(hosts=("web1.test",))
    found, count = await fleet.forecasts.of_selection(ALL)
    assert (found.order_count, count) == (1, 2)


async def test_what_is_left(pool: BlockingPool) -> None:
    """As `BudgetService` shows it, with who waits; and in the list of orders."""
    fleet = await Fleet(pool, ORDERS).issued()
    world, name = fleet.world, fleet.world.issuer.name
    free = await fleet.servicer.GetBudget(pb.GetBudgetRequest(), None)  # type: ignore[arg-type]  # unused
    assert [(each.issuer, each.limits, each.waiting_order_count) for each in free.issuers] == [
        (name, "configuration", 0),
        ("other", "none", 0),
    ]
    for number in (3, 4):
        command = issue(f"k{number}", wait=NO_WAIT, profile="mail", csr_pem=csr(f"k{number}", ("mail.test",)))
        await fleet.authority.issue(caller(f"web{number - 2}.test"), command)
        await settle()
    fleet.held = world.clock.now() + HOUR, Refusal(Reason.ISSUER_RATE_LIMITED, "too many")
    asked = pb.GetBudgetRequest(issuers=[name], dns_names=["Mail.test"])
    (ca,) = (await fleet.servicer.GetBudget(asked, None)).issuers  # type: ignore[arg-type]  # unused
    assert (ca.directory_url, ca.hold_reason) == (URL, "too many")
    (limit,) = ca.budgets
    assert (limit.name, limit.scope, limit.amount, [*limit.exempt]) == ("orders", pb.LIMIT_SCOPE_ACCOUNT, 1, ["ari"])
    assert limit.per.ToTimedelta() == HOUR
    assert (limit.bucket_count, limit.buckets[0].left) == (1, 0)
    assert ca.waiting_order_count == limit.buckets[0].waiting_order_count
    view = fleet.authority.overview(world.stores.order_listing, lambda _: None, name="here", left=fleet.forecasts.left)
    views, _ = await view.page(OrderQuery(open_only=True), None, 50)
    assert {each.budget for each in views if not each.order.acme_order_url} <= {
        "0 of 1 place of orders left (1 per 1h)"
    }


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(pb.GetBudgetRequest(issuers=["nobody"]), "issuers", id="issuer"),
        pytest.param(pb.GetBudgetRequest(dns_names=["no name"]), "dns_names", id="name"),
        pytest.param(pb.GetBudgetRequest(dns_names=["a.test"] * 101), "dns_names", id="names"),
    ],
)
async def test_a_budget_of_what_there_is_none(pool: BlockingPool, request_: pb.GetBudgetRequest, field: str) -> None:
    """Refused, with the field and what there is."""
    fleet = Fleet(pool, ORDERS)
    with pytest.raises(RefusalError) as caught:
        await fleet.servicer.GetBudget(request_, None)  # type: ignore[arg-type]  # unused
    assert [each.subject for each in caught.value.refusal.violations] == [field]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(pb.ForecastOrdersRequest(), "selection", id="nothing"),
        pytest.param({"selection": {"all": True, "identities": True}}, "selection.identities", id="identities"),
        pytest.param({"selection": {"all": True}, "issuer": "nobody"}, "issuer", id="issuer"),
    ],
)
async def test_a_forecast_of_what_there_is_none(
    pool: BlockingPool, request_: pb.ForecastOrdersRequest | dict[str, object], field: str
) -> None:
    """Refused, with the field and what there is."""
    fleet = Fleet(pool, ORDERS)
    message = request_ if isinstance(request_, pb.ForecastOrdersRequest) else pb.ForecastOrdersRequest(**request_)  # type: ignore[arg-type]  # fields
    with pytest.raises(RefusalError) as caught:
        await fleet.servicer.ForecastOrders(message, None)  # type: ignore[arg-type]  # unused
    assert [each.subject for each in caught.value.refusal.violations] == [field]


async def test_a_forecast_as_it_is_answered(pool: BlockingPool) -> None:
    """All that `Forecast` has."""
    fleet = await Fleet(pool, ORDERS).issued()
    request = pb.ForecastOrdersRequest(selection={"all": True})
    answer = await fleet.servicer.ForecastOrders(request, None)  # type: ignore[arg-type]  # unused
    assert (answer.certificate_count, answer.forecast.order_count, answer.forecast.never_count) == (2, 2, 0)
    assert answer.forecast.steps[-1].time == answer.forecast.last_order_time
    assert answer.forecast.last_order_time.ToDatetime() > timestamp(fleet.world.clock.now()).ToDatetime()
    assert [step.order_count for step in answer.forecast.steps] == [1] * 19 + [2]
