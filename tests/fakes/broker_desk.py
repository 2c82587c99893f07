"""A `BrokerDesk` of one broker that does whatever it is asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from typing_extensions import override

from certplane.broker.control import ReloadRequest
from certplane.broker.fleet.bundle_plan import BundlePlan, plan_bundle
from certplane.broker.members.requests import BrokerAnswer
from certplane.broker.services.brokers import AskedBroker, BrokerDesk
from certplane.pki.trust_bundle import TrustBundle


class FakeBrokerDesk(BrokerDesk):
    """`asked` are the reloads; plans are against the bundle itself."""

    def __init__(self) -> None:
        self.asked: list[ReloadRequest] = []

    @override
    async def reload(self, asked: ReloadRequest, broker_ids: Collection[str], *, every: bool) -> Sequence[AskedBroker]:
        self.asked.append(asked)
        return [AskedBroker("broker-1", "here", BrokerAnswer(done=True, lines=("policy loaded",)))]

    @override
    async def drain(self, asked: ReloadRequest, broker_id: str, reason: str, *, undo: bool) -> AskedBroker:
        return AskedBroker("broker-1", "here", BrokerAnswer(done=True, draining=not undo))

    @override
    async def plan_bundle(self, pem: bytes) -> BundlePlan:
        bundle = TrustBundle.from_pem(pem)
        return plan_bundle(bundle, bundle, [])
