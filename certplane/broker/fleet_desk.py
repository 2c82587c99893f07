"""`FleetService`, put together for `app`."""

from __future__ import annotations

from certplane.broker.events import AuditTrail
from certplane.broker.fleet.followed import FollowedRequests
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.fleet.forgetting import HostForgetting
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.requests import RenewalRequests
from certplane.broker.fleet.summaries import FleetSummaries
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.overview import OrdersView
from certplane.broker.members.view import BrokersView
from certplane.broker.ports import PolicySource
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.services.fleet import FleetServicer
from certplane.broker.services.fleet_lists import FleetLists
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.broker.wiring import FleetParts
from certplane.runtime.clock import Clock


def fleet_service(
    settings: BrokerSettings,
    stores: Stores,
    plans: RenewalPlans,
    hub: FleetHub,
    fleet: FleetParts,
    *,
    brokers: BrokersView,
    authority: RegistrationAuthority,
    orders: OrdersView,
    policy: PolicySource,
    forecasts: Forecasts,
    clock: Clock,
    trail: AuditTrail,
) -> FleetServicer:
    """What operators ask of the fleet."""
    return FleetServicer(
        fleet.view,
        RenewalRequests(plans, stores.fleet, clock, trail, why_none=fleet.view.why_none),
        brokers,
        authority=authority,
        followed=FollowedRequests(plans, stores.fleet, clock, fleet.view.holder_now),
        lists=FleetLists(fleet.view, fleet.index, clock),
        forgetting=HostForgetting(
            view=fleet.view,
            store=stores.host_removal,
            plans=plans,
            policy=policy,
            watchers=hub.watchers,
            clock=clock,
            trail=trail,
        ),
        summaries=FleetSummaries(
            fleet.index,
            fleet.view,
            audit=stores.audit_reader,
            orders=orders,
            issuers=settings.cas,
            clock=clock,
            forecasts=forecasts,
        ),
    )
