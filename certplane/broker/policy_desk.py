"""What operators ask of a broker's policy: what is in force, what another text would do, a reload."""

from __future__ import annotations

import socket
from typing import Final

from typing_extensions import override

from certplane.broker.control import ReloadRequest, ReloadResult
from certplane.broker.fleet.mismatches import find_mismatches
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.policy.planned import PolicyInForce, PolicyPlan
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.reload import Reloader
from certplane.broker.services.policy import PolicyDesk, PolicyServicer
from certplane.runtime.turns import let_go

_TEXT: Final = "the text"
"""What problems of a plan name as the file, which it isn't."""


def policy_service(source: FilePolicySource, reloader: Reloader, store: FleetStore) -> PolicyServicer:
    """The service of a broker's policy."""
    return PolicyServicer(BrokersPolicyDesk(source, reloader, store, socket.gethostname()))


class BrokersPolicyDesk(PolicyDesk):
    """`PolicyDesk` of a broker; reads and compares large policies on the reloader's thread, one at a time."""

    def __init__(self, source: FilePolicySource, reloader: Reloader, store: FleetStore, name: str) -> None:
        """`name` is the machine's, for people."""
        self._source = source
        self._reloader = reloader
        self._store = store
        self._name = name

    @override
    def in_force(self) -> PolicyInForce:
        return PolicyInForce(
            hash=self._source.current.hash,
            load_time=self._reloader.policy_since,
            loaded_by=self._reloader.policy_by,
            file=str(self._source.path),
            refusal=self._reloader.policy_refusal,
            broker_id=self._store.broker_id,
            broker_name=self._name,
        )

    @override
    async def text(self) -> str:
        return (await self._reloader.on_thread(self._source.loaded.text)).decode()

    @override
    async def plan(self, content: bytes) -> PolicyPlan:
        policy, changes, confirmation = await self._reloader.on_thread(lambda: self._source.plan(content, _TEXT))
        found = find_mismatches(self._store, policy, self._source.current)
        plan = PolicyPlan(policy.hash, changes, tuple([each async for each in found]), confirmation)
        # What a large one was is freed in pieces, as a reload does.
        left: list[object] = [*policy.profiles, *policy.grants]
        del policy, found
        await self._reloader.on_thread(lambda: let_go(left))
        return plan

    @override
    async def reload(self, asked: ReloadRequest) -> ReloadResult:
        return await self._reloader.request(asked)
