"""A `PolicyDesk` of values: a policy that stays, plans that change nothing, reloads that are written down."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from typing_extensions import override

from certplane.broker.control import ReloadRequest, ReloadResult
from certplane.broker.policy.changes import compare
from certplane.broker.policy.document import read_policy
from certplane.broker.policy.history import PolicyVersion
from certplane.broker.policy.planned import PolicyInForce, PolicyPlan
from certplane.broker.services.policy import PolicyDesk
from certplane.config.document import Document


class FakePolicyDesk(PolicyDesk):
    """Has `TEXT` in force; `asked` are the reloads."""

    TEXT = "operators: {alice: {identity: alice.example}}\n"

    def __init__(self) -> None:
        self.asked: list[ReloadRequest] = []

    @override
    def in_force(self) -> PolicyInForce:
        hash_ = hashlib.sha256(self.TEXT.encode()).hexdigest()
        since = datetime(2026, 11, 23, tzinfo=UTC)
        return PolicyInForce(hash_, since, "the start of the broker", "policy.yml", "", "broker-1", "here")

    @override
    async def text(self) -> str:
        return self.TEXT

    @override
    async def earlier(self, policy_hash: str) -> tuple[PolicyInForce, str] | None:
        return None

    @override
    async def versions(self, *, before: int | None, limit: int) -> Sequence[PolicyVersion]:
        return [PolicyVersion(self.in_force().hash, self.in_force().load_time, "the start of the broker", "here")]

    @override
    async def plan(self, content: bytes) -> PolicyPlan:
        before, after = (read_policy(Document.parse(text, "the text")) for text in (self.TEXT.encode(), content))
        return PolicyPlan(after.hash, compare(before, after), (), "")

    @override
    async def reload(self, asked: ReloadRequest) -> ReloadResult:
        self.asked.append(asked)
        return ReloadResult(ok=True, lines=("policy loaded",))
