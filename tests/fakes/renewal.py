"""Fakes of what plans and tells renewals: a CA that says when, and how it fails; rollouts that release certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from typing_extensions import override

from certplane.broker.fleet.ports import Activations
from certplane.broker.renewal.model import HostActivation, RenewalInfo, RenewalInfoUnsupportedError
from certplane.broker.renewal.planner import RenewalPlanner
from tests.fakes.faults import FaultScript


class FakeRenewalInfoSource:
    """`RenewalInfoSource`: says `answer` about every certificate, or what `answers` has for one (by its PEM).

    Attributes:
        asked: the certificates that it was asked about, in order.
        most_at_once: questions that were under way together.
        faults: errors and gates, by `renewal_info`.
    """

    def __init__(self, answer: RenewalInfo | None = None) -> None:
        self.answer = answer
        self.answers: dict[str, RenewalInfo] = {}
        self.asked: list[str] = []
        self.most_at_once = 0
        self.faults = FaultScript()
        self._under_way = 0

    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        self.asked.append(certificate_pem)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            async with self.faults.around("renewal_info"):
                answer = self.answers.get(certificate_pem, self.answer)
                if answer is None:
                    raise RenewalInfoUnsupportedError("the CA offers no renewal information")
                return answer
        finally:
            self._under_way -= 1


class FakeActivations(Activations):
    """`Activations` of a list; `reads` are the hosts of each question."""

    def __init__(self) -> None:
        self.released: list[HostActivation] = []
        self.reads: list[tuple[str, ...]] = []

    @override
    async def activations_of(self, hosts: Sequence[str]) -> Sequence[HostActivation]:
        self.reads.append(tuple(hosts))
        return [each for each in self.released if each.host in hosts]


async def plan_on(planner: RenewalPlanner) -> None:
    """All that a planner does, as in a broker that has every role."""
    async with asyncio.TaskGroup() as group:
        for work in (planner.run(), planner.tidy(), *map(planner.watch, planner.issuers)):
            group.create_task(work)
