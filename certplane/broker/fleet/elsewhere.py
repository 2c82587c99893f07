"""What happens at other brokers that this one's streams must hear of: plans, revocations, hosts that came there."""

from __future__ import annotations

from certplane.broker.fleet.hub import FleetHub
from certplane.broker.model import ChangeKind
from certplane.broker.ports import ChangeFeed
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.ports import RevokedCertificates
from certplane.broker.renewal.revocations import Revocations
from certplane.runtime.clock import Clock


def hear_of_plans(
    hub: FleetHub, plans: RenewalPlans, revoked: RevokedCertificates, feed: ChangeFeed, clock: Clock
) -> None:
    """Let the hub hear of plans and of revocations, this broker's own and those of other programs; and of streams."""
    plans.subscribe(hub.plans_changed)
    plans.subscribe_unknown(hub.plans_unknown)
    plans.subscribe_revoked(hub.certificate_revoked)
    feed.follow(ChangeKind.PLAN, plans, what="renewal plans")
    feed.follow(ChangeKind.CERTIFICATE_REVOKED, Revocations(revoked, plans, clock), what="recent revocations")
    feed.follow(ChangeKind.STREAM, hub.displacement, what="which hosts have gone to another broker")
