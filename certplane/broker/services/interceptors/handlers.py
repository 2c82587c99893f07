"""The handlers of grpc.aio as the edge runs them: reading messages, and streams whose caller is looked at.

grpc hands over bytes, since the edge registers its wrappers without a deserialiser: nobody who isn't known reaches a
parser, and bytes that are no message are a refusal like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from certplane.broker.services.calls import EdgeRefusalError
from certplane.errors import Reason, Violation

__all__ = ["Behaviour", "RpcContext", "read_message", "read_messages", "run_stream", "unimplemented"]

RpcContext = grpc.aio.ServicerContext[Any, Any]

Behaviour = Callable[[Any, Any], Any]
"""A handler: the request (or a stream of them) and the context to a coroutine or an async generator."""


async def run_stream(behaviour: Behaviour, request: Any, context: RpcContext, check: Callable[[], None]) -> Any:
    """Run the handler of a stream, with `check` before each message that goes out.

    Handlers that yield messages and handlers that write them (`grpc_health` does) are both served. Returns what the
    handler returns: a message, if only the requests are a stream.
    """
    result = behaviour(request, _CheckedContext(context, check))
    if not isinstance(result, AsyncGenerator):
        return await result
    async with contextlib.aclosing(result) as messages:
        async for message in messages:
            check()
            await context.write(message)
    return None


class _CheckedContext:
    """A context whose `write` runs a check first; all else is the context's own."""

    __slots__ = ("_check", "_context")

    def __init__(self, context: RpcContext, check: Callable[[], None]) -> None:
        self._context = context
        self._check = check

    async def write(self, message: Any) -> None:
        self._check()
        await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def read_message(deserialize: Callable[[bytes], Any], data: bytes) -> Any:
    """The message in `data`.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    try:
        return deserialize(data)
    except DecodeError as error:
        problem = "the message can't be read as this method's request"
        raise EdgeRefusalError(Reason.REQUEST_INVALID, problem, violations=[Violation("request", problem)]) from error


async def read_messages(deserialize: Callable[[bytes], Any], context: RpcContext) -> AsyncIterator[Any]:
    """The messages of a stream, each read as `read_message` does when it is asked for.

    Read from the context and not from grpc's own iterator, which costs each open stream a generator more.
    """
    while (data := await context.read()) is not grpc.aio.EOF:
        message = read_message(deserialize, data)
        del data
        yield message
        del message  # an open stream may wait for hours for the next one


async def unimplemented(_request: Any, context: RpcContext) -> None:
    """The handler of every method that isn't served."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this broker doesn't serve this method")
