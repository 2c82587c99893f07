"""What the CAs' limits leave, put together for `app`."""

from __future__ import annotations

from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.budget import BudgetWatch
from certplane.broker.issuance.overview import OrdersView
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.ports import Meter, PolicySource
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.services.budget import BudgetServicer
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.broker.wiring import FleetParts
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool


def forecasts_of(
    settings: BrokerSettings,
    stores: Stores,
    plans: RenewalPlans,
    policy: PolicySource,
    *,
    pool: BlockingPool,
    clock: Clock,
) -> Forecasts:
    """Who forecasts, from the ledger of all brokers."""
    return Forecasts(stores.budget, plans, policy, settings.budgets, pool=pool, clock=clock)


def budget_service(
    settings: BrokerSettings, forecasts: Forecasts, orders: OrdersView, fleet: FleetParts, clock: Clock
) -> BudgetServicer:
    """What operators ask of it."""
    return BudgetServicer(forecasts, orders.issuer_trouble, issuers=[*settings.cas], named=fleet.view, clock=clock)


def budget_watch(
    stores: Stores,
    policy: FilePolicySource,
    authority: RegistrationAuthority,
    forecasts: Forecasts,
    *,
    clock: Clock,
    meter: Meter,
) -> BudgetWatch:
    """What shows it as figures; it is to be run."""
    return BudgetWatch(
        stores.order_listing,
        lambda: [*policy.current.issued_profiles],
        lambda: authority.limits,
        forecasts.overview,
        clock=clock,
        meter=meter,
    )
