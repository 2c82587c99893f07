"""What operators ask of a broker's policy: what is in force, what was, what another text would do, a reload."""

from __future__ import annotations

import logging
import socket
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from typing_extensions import override

from certplane.broker.control import ReloadRequest, ReloadResult
from certplane.broker.fleet.mismatches import find_mismatches
from certplane.broker.policy.document import PolicyDocument
from certplane.broker.policy.effort import effort
from certplane.broker.policy.history import MOST_PACKED, PolicyVersion
from certplane.broker.policy.planned import PolicyInForce, PolicyPlan
from certplane.broker.policy.same_names import same_names, warnings
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.reload import Reloader
from certplane.broker.services.policy import PolicyDesk, PolicyServicer
from certplane.broker.store import Stores
from certplane.errors import RefusalError
from certplane.runtime.turns import let_go

_logger = logging.getLogger(__name__)

_TEXT: Final = "the text"
"""What problems of a plan name as the file, which it isn't."""


def policy_service(source: FilePolicySource, reloader: Reloader, stores: Stores) -> PolicyServicer:
    """The service of a broker's policy, which keeps each policy that is put in force."""
    desk = BrokersPolicyDesk(source, reloader, stores, socket.gethostname())
    reloader.on_policy = desk.keep
    return PolicyServicer(desk)


class BrokersPolicyDesk(PolicyDesk):
    """`PolicyDesk` of a broker; reads and compares large policies on the reloader's thread, one at a time."""

    def __init__(self, source: FilePolicySource, reloader: Reloader, stores: Stores, name: str) -> None:
        """`name` is the machine's, for people."""
        self._source = source
        self._reloader = reloader
        self._store = stores.fleet
        self._history = stores.policy_history
        self._name = name
        self._warned = ""

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

    async def keep(self) -> None:
        """Keep the policy in force among those that were. Never raises `RefusalError`: it is in force all the same."""
        loaded = self._source.loaded
        await self._warn(loaded.policy)
        kept = len(loaded.packed) <= MOST_PACKED
        version = PolicyVersion(
            hash=loaded.policy.hash,
            load_time=self._reloader.policy_since,
            loaded_by=self._reloader.policy_by,
            broker_name=self._name,
            counts=() if loaded.changes is None else loaded.changes.counts,
            text_size=loaded.size if kept else 0,
        )
        try:
            await self._history.keep(version, loaded.packed if kept else b"")
        except RefusalError as error:
            _logger.warning("the policy could not be kept in the history: %s", error)

    @override
    async def versions(self, *, before: int | None, limit: int) -> Sequence[PolicyVersion]:
        return await self._history.versions(before=before, limit=limit)

    async def _warn(self, policy: PolicyDocument) -> None:
        """Say once of each policy what its names would take at their CAs."""
        if policy.hash != self._warned:
            self._warned = policy.hash
            budgets = self._reloader.settings.current.budgets
            for text in warnings(await self._reloader.on_thread(lambda: same_names(policy, budgets))):
                _logger.warning("policy: %s", text)

    @override
    async def earlier(self, policy_hash: str) -> tuple[PolicyInForce, str] | None:
        found = await self._history.find(policy_hash)
        if found is None:
            return None
        version, packed = found
        text = (await self._reloader.on_thread(lambda: zlib.decompress(packed))).decode() if packed else ""
        known = self.in_force()
        return replace(
            known,
            hash=version.hash,
            load_time=version.load_time,
            loaded_by=version.loaded_by,
            file="",
            refusal="" if packed else "its text was too large to be kept",
            broker_name=version.broker_name,
        ), text

    @override
    async def plan(self, content: bytes) -> PolicyPlan:
        before = self._source.current
        policy, changes, confirmation = await self._reloader.on_thread(lambda: self._source.plan(content, _TEXT))
        found = find_mismatches(self._store, policy, before)
        settings = self._reloader.settings.current
        limit = settings.rate_limits.durable_limits.certificates_per_name_set_per_week
        private, budgets = settings.private_issuers, settings.budgets
        counting = partial(effort, changes, before.granted, policy.granted, budgets, private, same_names_per_week=limit)
        orders = await self._reloader.on_thread(counting)
        alike = await self._reloader.on_thread(partial(same_names, policy, budgets))
        lost = await self._hosts_lost(before, policy)
        mismatches = tuple([each async for each in found])
        plan = PolicyPlan(
            policy.hash, changes, mismatches, confirmation, replace(orders, hosts_lost=lost), tuple(alike)
        )
        # What a large one was is freed in pieces, as a reload does.
        left: list[object] = [*policy.profiles, *policy.issued_profiles, *policy.grants]
        del policy, found, counting
        await self._reloader.on_thread(lambda: let_go(left))
        return plan

    async def _hosts_lost(self, before: PolicyDocument, after: PolicyDocument) -> int:
        """How many hosts that are connected, to whichever broker, would lose all certificates."""
        count = 0
        for host in await self._reloader.audience():
            grants = before.find_grant(host.name), after.find_grant(host.name)
            had, has = (grant is not None and bool(grant.profiles) for grant in grants)
            count += host.connected and had and not has
        return count

    @override
    async def reload(self, asked: ReloadRequest) -> ReloadResult:
        return await self._reloader.request(asked)
