"""What operators ask of brokers as programs: reload, out of service and back, and what a bundle would do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from typing_extensions import override

from certplane.broker.control import ReloadRequest
from certplane.broker.fleet.bundle_plan import BundlePlan, plan_bundle
from certplane.broker.members.requests import BrokerAnswer, BrokerCommand, BrokerRequest, BrokerRequests
from certplane.broker.out_of_service import OutOfService
from certplane.broker.reload import Reloader
from certplane.broker.services.brokers import AskedBroker, BrokerDesk
from certplane.broker.services.trust import TrustInForce
from certplane.broker.store import Stores
from certplane.pki.trust_bundle import TrustBundle
from certplane.runtime.clock import Clock

_NO_ANSWER: Final = "gave no answer in time: it has gone meanwhile, is of an earlier release, or its log says why"
_GONE: Final = "is no broker of this fleet that runs: `certplanectl brokers` shows those that do"


class BrokersDesk(BrokerDesk):
    """`BrokerDesk` over the broker's own parts, and the rows by which brokers ask each other."""

    def __init__(
        self,
        *,
        trust: TrustInForce,
        reloader: Reloader,
        service: OutOfService,
        stores: Stores,
        new_id: Callable[[], str],
        clock: Clock,
    ) -> None:
        """Nobody is asked yet."""
        self._trust = trust
        self._reloader = reloader
        self.service = service
        self._members = stores.members
        self._new_id = new_id
        self._clock = clock
        self._broker_id = stores.members.broker_id
        self.requests = BrokerRequests(stores.broker_requests, self._broker_id, self._carry_out, clock)

    @override
    async def reload(self, asked: ReloadRequest, broker_ids: Collection[str], *, every: bool) -> Sequence[AskedBroker]:
        there = await self._names()
        wanted = [*there] if every else [*dict.fromkeys(broker_ids or [self._broker_id])]
        requests = [
            self._request(broker_id, BrokerCommand.RELOAD, asked, confirmed=asked.confirmed)
            for broker_id in wanted
            if broker_id in there
        ]
        answers = await self.requests.ask(requests, self._names)
        return [self._told(broker_id, there, answers) for broker_id in wanted]

    @override
    async def drain(self, asked: ReloadRequest, broker_id: str, reason: str, *, undo: bool) -> AskedBroker:
        there = await self._names()
        broker_id = broker_id or self._broker_id
        command = BrokerCommand.SERVE if undo else BrokerCommand.DRAIN
        requests = [self._request(broker_id, command, asked, reason=reason)] if broker_id in there else []
        answers = await self.requests.ask(requests, self._names)
        return self._told(broker_id, there, answers)

    @override
    async def plan_bundle(self, pem: bytes) -> BundlePlan:
        bundle = await self._reloader.on_thread(lambda: TrustBundle.from_pem(pem))
        return plan_bundle(self._trust.bundle, bundle, await self._reloader.audience())

    async def _names(self) -> Mapping[str, str]:
        """The brokers whose lease stands, and this one."""
        names = {member.broker_id: member.name for member in await self._members.living()}
        return {**names, self._broker_id: socket.gethostname()}

    def _request(
        self,
        broker_id: str,
        command: BrokerCommand,
        asked: ReloadRequest,
        *,
        confirmed: bool = False,
        reason: str = "",
    ) -> BrokerRequest:
        return BrokerRequest(
            request_key=self._new_id(),
            broker_id=broker_id,
            command=command,
            asked_by=asked.by,
            confirmed=confirmed,
            identity=asked.identity,
            request_id=asked.request_id,
            reason=reason,
            create_time=self._clock.now(),
        )

    def _told(self, broker_id: str, there: Mapping[str, str], answers: Mapping[str, BrokerAnswer]) -> AskedBroker:
        answer = answers.get(broker_id)
        if answer is None:
            line = _NO_ANSWER if broker_id in there else _GONE
            answer = BrokerAnswer(done=False, lines=(line,))
        return AskedBroker(broker_id, there.get(broker_id, ""), answer)

    async def _carry_out(self, request: BrokerRequest) -> BrokerAnswer:
        match request.command:
            case BrokerCommand.DRAIN:
                return await self.service.drain(request)
            case BrokerCommand.SERVE:
                return await self.service.serve(request)
            case BrokerCommand.RELOAD:
                asked = ReloadRequest(
                    request.asked_by,
                    confirmed=request.confirmed,
                    identity=request.identity,
                    request_id=request.request_id,
                )
                result = await self._reloader.request(asked)
                return BrokerAnswer(result.ok, result.lines, confirmation_required=result.unconfirmed)
