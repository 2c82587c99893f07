# ruff: noqa: N802 - methods bear the names of the proto file
"""`PolicyService`: the policy in force, plans of another, and a reload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

import grpc

from certplane.broker.control import ReloadRequest, ReloadResult
from certplane.broker.policy.history import MOST_VERSIONS, PolicyVersion
from certplane.broker.policy.planned import PolicyInForce, PolicyPlan
from certplane.broker.services.calls import current_call, take_request_id
from certplane.broker.services.convert import cursor_from_token, invalid_request, page_size, token_from_cursor
from certplane.broker.services.policy_convert import (
    count_messages,
    in_force_message,
    pieces,
    plan_messages,
    problem_messages,
    summary_message,
    version_message,
)
from certplane.config.document import MAX_BYTES
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.runtime.text import printable
from certplane.v1 import policy_pb2 as pb
from certplane.v1 import policy_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_READING: Final = timedelta(minutes=1)
"""How long the text of a plan may take to come: others wait for their turn meanwhile."""

_DIGITS: Final = 9
"""Of a version's number in a page token."""
_MOST_LINE: Final = 2000
_MOST_LINES: Final = 20


class PolicyDesk(Protocol):
    """What the service asks of the broker."""

    def in_force(self) -> PolicyInForce:
        """What is known of the policy in force.

        Raises:
            RefusalError: POLICY_UNAVAILABLE.
        """
        ...

    async def text(self) -> str:
        """The text of the policy in force."""
        ...

    async def earlier(self, policy_hash: str) -> tuple[PolicyInForce, str] | None:
        """A policy that was in force, at whichever broker, and its text; None if it isn't kept.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def versions(self, *, before: int | None, limit: int) -> Sequence[PolicyVersion]:
        """The policies that were in force, the newest first, those before a number.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def plan(self, content: bytes) -> PolicyPlan:
        """What would come of a text; changes nothing.

        Raises:
            ConfigurationError: all that is wrong with it.
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def reload(self, asked: ReloadRequest) -> ReloadResult:
        """Have the file read again, and wait for what comes of it; audited."""
        ...


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name

    def __init__(self, desk: PolicyDesk) -> None:
        self._desk = desk
        self._turn = asyncio.Lock()
        """One plan at a time has its text in memory: a large one takes hundreds of megabytes while it is read."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def GetPolicy(
        self, request: pb.GetPolicyRequest, _context: RpcContext
    ) -> AsyncGenerator[pb.GetPolicyResponse, None]:
        """What is known of it, then its text."""
        if request.policy_hash and request.policy_hash != self._desk.in_force().hash:
            found = await self._desk.earlier(_hash_of(request.policy_hash))
            if found is None:
                raise invalid_request("policy_hash", "is of no policy that is kept; ListPolicyVersions has all of them")
            policy, text = found
            text = "" if request.without_text else text
        else:
            text = "" if request.without_text else await self._desk.text()
            policy = self._desk.in_force()
        yield pb.GetPolicyResponse(policy=in_force_message(policy))
        for piece in pieces(text):
            yield pb.GetPolicyResponse(policy_text=piece)

    async def PlanPolicy(
        self, requests: AsyncIterator[pb.PlanPolicyRequest], context: RpcContext
    ) -> AsyncGenerator[pb.PlanPolicyResponse, None]:
        """A summary and what it counts, or all that is wrong with the text."""
        await _greet(requests)
        async with self._turn:
            # A client that waits for these sends no text to a call that was refused, or before its turn.
            await context.send_initial_metadata(())
            in_force = self._desk.in_force()
            try:
                plan = await self._desk.plan(await _text_of(requests))
            except ConfigurationError as error:
                messages = problem_messages(error.problems)
            else:
                yield summary_message(plan, in_force)
                messages = plan_messages(plan)
        for message in messages:
            yield message

    async def ReloadPolicy(self, request: pb.ReloadPolicyRequest, _context: RpcContext) -> pb.ReloadPolicyResponse:
        """What a reload did."""
        caller, request_id = current_call()
        asked = ReloadRequest(
            f"the operator {caller.name}",
            confirmed=request.confirm,
            policy_only=True,
            identity=caller.name,
            request_id=request_id,
        )
        result = await self._desk.reload(asked)
        return pb.ReloadPolicyResponse(
            loaded=result.ok,
            confirmation_required=result.unconfirmed,
            lines=[printable(line, _MOST_LINE) for line in result.lines[:_MOST_LINES]],
            policy=in_force_message(self._desk.in_force()),
            counts=count_messages(result.changes),
        )

    async def ListPolicyVersions(
        self, request: pb.ListPolicyVersionsRequest, _context: RpcContext
    ) -> pb.ListPolicyVersionsResponse:
        """The policies that were in force."""
        cursor = cursor_from_token(request.page_token)
        if cursor and not (cursor.isdecimal() and len(cursor) <= _DIGITS):
            raise invalid_request("page_token", "is not a token of this broker")
        limit = min(page_size(request.page_size), MOST_VERSIONS)
        versions = await self._desk.versions(before=int(cursor) if cursor else None, limit=limit)
        return pb.ListPolicyVersionsResponse(
            versions=map(version_message, versions),
            next_page_token=token_from_cursor(str(versions[-1].number)) if len(versions) == limit else "",
        )


def _hash_of(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", text) is None:
        raise invalid_request("policy_hash", "must be a whole SHA-256, 64 lower-case hexadecimal digits")
    return text


async def _greet(requests: AsyncIterator[pb.PlanPolicyRequest]) -> None:
    """Hear the first message.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, it isn't hello.
    """
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "hello":
        raise invalid_request("hello", "is required, and is the first message")
    take_request_id(first.hello.request_id)


async def _text_of(requests: AsyncIterator[pb.PlanPolicyRequest]) -> bytes:
    """The text of a plan, after its hello.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, it isn't one.
        RefusalError: STREAM_TIMED_OUT, it takes too long.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_READING.total_seconds()):
            async for message in requests:
                if message.WhichOneof("message") != "policy_text":
                    raise invalid_request("message", "must be a piece of the text")
                piece = message.policy_text.encode()
                size += len(piece)
                if size <= MAX_BYTES:  # the rest is read all the same: a client that still sends may not hear why not
                    parts.append(piece)
    except TimeoutError as error:
        problem = f"the text didn't come within {_READING.total_seconds():.0f} seconds; others wait to plan theirs"
        raise RefusalError(Reason.STREAM_TIMED_OUT, problem) from error
    if size > MAX_BYTES:
        raise invalid_request("policy_text", f"is larger than {MAX_BYTES} bytes")
    return b"".join(parts)
