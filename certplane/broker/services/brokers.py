# ruff: noqa: N802 - methods bear the names of the proto file
"""`BrokerService`: brokers read their files again, go out of service and back; and what a bundle would do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from certplane.broker.control import ReloadRequest
from certplane.broker.fleet.bundle_plan import BundlePlan
from certplane.broker.members.requests import BrokerAnswer
from certplane.broker.services.calls import current_call
from certplane.broker.services.convert import invalid_request
from certplane.broker.services.fleet_convert import text_of
from certplane.pki.bundle import BundleError
from certplane.rpc.times import timestamp
from certplane.runtime.text import printable
from certplane.v1 import broker_pb2 as pb
from certplane.v1 import broker_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_MOST_BROKERS: Final = 100
_MOST_HOSTS: Final = 50
_MOST_CAS: Final = 100
_MOST_LINES, _LONGEST_LINE = 10, 1000
_ALL_LINES: Final = 48 * 1024
"""Octets of the lines of all brokers: an answer is one message."""


@dataclass(frozen=True, slots=True)
class AskedBroker:
    """A broker, its machine's name, and its answer; one that gave none, or isn't there, is answered for."""

    broker_id: str
    name: str
    answer: BrokerAnswer


class BrokerDesk(Protocol):
    """What the service asks of the broker."""

    async def reload(self, asked: ReloadRequest, broker_ids: Collection[str], *, every: bool) -> Sequence[AskedBroker]:
        """Have these brokers, or every one, read everything again; none named: the one that answers. Audited there.

        Raises:
            RefusalError: STORE_UNAVAILABLE: nothing was asked of the others.
        """
        ...

    async def drain(self, asked: ReloadRequest, broker_id: str, reason: str, *, undo: bool) -> AskedBroker:
        """Take a broker out of service, or back; empty: the one that answers. Audited there.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def plan_bundle(self, pem: bytes) -> BundlePlan:
        """What would come of a bundle; changes nothing.

        Raises:
            BundleError: it is none.
        """
        ...


class BrokerServicer(broker_pb2_grpc.BrokerServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["BrokerService"].full_name

    def __init__(self, desk: BrokerDesk) -> None:
        self._desk = desk

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        broker_pb2_grpc.add_BrokerServiceServicer_to_server(self, server)

    async def ReloadBrokers(self, request: pb.ReloadBrokersRequest, _context: RpcContext) -> pb.ReloadBrokersResponse:
        """What each broker did."""
        if request.all and request.broker_ids:
            raise invalid_request("broker_ids", "must be empty with all")
        if len(request.broker_ids) > _MOST_BROKERS:
            raise invalid_request("broker_ids", f"must be at most {_MOST_BROKERS}")
        asked = _asked(confirmed=request.confirm)
        brokers = await self._desk.reload(asked, request.broker_ids, every=request.all)
        response = pb.ReloadBrokersResponse()
        room = _ALL_LINES // max(1, len(brokers))
        for broker in brokers:
            lines, left = [], room
            for line in broker.answer.lines[:_MOST_LINES]:
                lines.append(printable(line, min(_LONGEST_LINE, left)))
                left -= len(lines[-1].encode())
            response.reloads.add(
                broker_id=printable(broker.broker_id, _MOST_HOSTS),
                broker_name=broker.name,
                done=broker.answer.done,
                confirmation_required=broker.answer.confirmation_required,
                lines=lines,
            )
        return response

    async def DrainBroker(self, request: pb.DrainBrokerRequest, _context: RpcContext) -> pb.DrainBrokerResponse:
        """What it has still."""
        reason = text_of("reason", request.reason)
        broker = await self._desk.drain(_asked(), request.broker_id, reason, undo=request.undo)
        answer = broker.answer
        if not answer.done:
            raise invalid_request("broker_id", printable("; ".join(answer.lines), _LONGEST_LINE))
        return pb.DrainBrokerResponse(stream_count=answer.streams, order_count=answer.orders, draining=answer.draining)

    async def PlanTrustBundle(
        self, request: pb.PlanTrustBundleRequest, _context: RpcContext
    ) -> pb.PlanTrustBundleResponse:
        """What would come of it, or what is wrong with it."""
        if not request.bundle_pem:
            raise invalid_request("bundle_pem", "is required")
        try:
            plan = await self._desk.plan_bundle(request.bundle_pem.encode())
        except BundleError as error:
            return pb.PlanTrustBundleResponse(problems=[f"the bundle {printable(str(error), _LONGEST_LINE)}"])
        return pb.PlanTrustBundleResponse(
            trust_hash=plan.trust_hash,
            cas=[
                pb.PlanTrustBundleResponse.Ca(
                    subject=ca.subject,
                    sha256=ca.sha256,
                    not_after_time=timestamp(ca.not_after),
                    before=ca.before,
                    after=ca.after,
                    host_count=ca.host_count,
                )
                for ca in plan.cas[:_MOST_CAS]
            ],
            shut_out_count=len(plan.shut_out.hosts),
            shut_out_connected_count=plan.shut_out.connected,
            shut_out_hosts=plan.shut_out.hosts[:_MOST_HOSTS],
            confirmation=printable(plan.confirmation, _LONGEST_LINE),
        )


def _asked(*, confirmed: bool = False) -> ReloadRequest:
    caller, request_id = current_call()
    return ReloadRequest(
        f"the operator {caller.name}", confirmed=confirmed, identity=caller.name, request_id=request_id
    )
