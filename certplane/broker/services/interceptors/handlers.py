"""The handlers of grpc.aio as the edge runs them: reading messages, and streams whose caller is checked.

grpc hands over bytes, since the edge registers its wrappers without a deserialiser: nobody who isn't known reaches a
parser, and bytes that are no message are a refusal like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from certplane.broker.services.calls import CallerGoneError, EdgeRefusalError
from certplane.errors import Reason, Violation

RpcContext = grpc.aio.ServicerContext[Any, Any]

Behaviour = Callable[[Any, Any], Any]
"""A handler: the request (or a stream of them) and the context to a coroutine or an async generator."""


async def run_stream(behaviour: Behaviour, request: Any, context: CheckedContext) -> Any:
    """Run the handler of a stream, with the context's check before each message that goes out.

    Handlers that yield messages and handlers that write them (`grpc_health` does) are both served. Returns what the
    handler returns: a message, if only the requests are a stream.
    """
    result = behaviour(request, context)
    if not isinstance(result, AsyncGenerator):
        return await result
    async with contextlib.aclosing(result) as messages:
        async for message in messages:
            await context.write(message)
    return None


class CheckedContext:
    """A context whose `write` runs a check first, and which knows when none is under way; all else is the context's.

    A call must not be aborted while its first message goes out: grpc's core refuses that, and the caller is told
    nothing for as long as it waits. So a cancellation of the handler leaves a message on its way, which `idle` waits
    for.
    """

    __slots__ = ("_check", "_context", "_handler", "_idle", "_writers")

    def __init__(self, context: RpcContext, check: Callable[[], None]) -> None:
        self._context = context
        self._check = check
        self._handler = asyncio.current_task()
        self._writers: tuple[asyncio.Task[Any], ...] = ()
        self._idle: asyncio.Future[None] | None = None

    async def write(self, message: Any) -> None:
        """Send a message, if the check lets it out.

        Raises:
            CallerGoneError
        """
        self._check()
        writer = asyncio.current_task()
        if writer is None or writer is self._handler:  # which may be cancelled meanwhile, as no other writer is
            sending = asyncio.create_task(self._write(message))
            self._writers = (*self._writers, sending)
            sending.add_done_callback(self._sent)
            await asyncio.shield(sending)
            return
        self._writers = (*self._writers, writer)
        try:
            await self._write(message)
        finally:
            self._sent(writer)

    async def _write(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.InternalError as error:  # grpc's core doesn't take it: the call has ended at its other end
            raise CallerGoneError("the caller has gone") from error

    def _sent(self, writer: asyncio.Task[Any]) -> None:
        self._writers = tuple(other for other in self._writers if other is not writer)
        if not self._writers and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if writer.done() and not writer.cancelled():
            writer.exception()  # the handler has it, or is gone

    async def idle(self, seconds: float) -> None:
        """Wait until no message is going out; those that go out for longer are given up."""
        if not self._writers:
            return
        self._idle = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._idle}, timeout=seconds)
        for writer in self._writers:
            writer.cancel()  # it would keep the call, and the call's messages

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


async def read_messages(
    deserialize: Callable[[bytes], Any], context: RpcContext, admit: Callable[[], Awaitable[None]]
) -> AsyncIterator[Any]:
    """The messages of a stream, each read as `read_message` does when it is asked for, and after `admit` let it in.

    Read from the context and not from grpc's own iterator, which costs each open stream a generator more.
    """
    while (data := await context.read()) is not grpc.aio.EOF:
        await admit()
        message = read_message(deserialize, data)
        del data
        yield message
        del message  # an open stream may wait for hours for the next one


async def unimplemented(_request: Any, context: RpcContext) -> None:
    """The handler of every method that isn't served."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this broker doesn't serve this method")
