"""The one interceptor: everything between a connection and a servicer, in a single wrapper around each handler.

For each call, in this order: let it in (`certplane.broker.identity.admission`: who is this, may it call, how much),
read the message, take or make the request's id, serve, charge the caller for the work, count, log. A refusal becomes a
rich status; anything unexpected becomes INTERNAL with the request's id and nothing else, and the log has the traceback.
What is refused here is also audited here; what the story refuses the story has audited.

Open streams are checked (`open_streams`): the caller is authenticated again before each message that goes out, every
`recheck`, and at the moment its certificate ends.

One wrapper instead of a chain of interceptors because each link costs a coroutine per call, and because the order above
is a rule that is best read in one place. Messages are read here, not by grpc, so that nobody who isn't known reaches a
parser, and a message that can't be read is a refusal like any other.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

import grpc

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.identity.access import METHODS, Access
from certplane.broker.identity.admission import AdmissionControl, Call
from certplane.broker.identity.denials import Denials
from certplane.broker.model import IdentityKind
from certplane.broker.ports import DenialRecorder, Meter
from certplane.broker.services.calls import CallerGoneError, EdgeRefusalError, is_request_id, serving, valid_request_id
from certplane.broker.services.interceptors.access_log import AccessLog
from certplane.broker.services.interceptors.handlers import (
    Behaviour,
    CheckedContext,
    RpcContext,
    read_message,
    read_messages,
    run_stream,
    unimplemented,
)
from certplane.broker.services.interceptors.open_streams import OpenStreams
from certplane.broker.services.interceptors.peer import peer_of
from certplane.broker.services.interceptors.status import REQUEST_ID_KEY, abort, code_name
from certplane.errors import Reason, Refusal, RefusalError
from certplane.rpc.tracing import call_span, context_of, note_code
from certplane.runtime import tracing
from certplane.runtime.clock import Clock
from certplane.runtime.logging import request_id as logged_request_id
from certplane.runtime.tracing import Span, SpanKind

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a string, since it is generic in its stubs alone
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler | None]]"

_RECHECK_AFTER_SECONDS: Final = 1.0
"""A unary call that took longer is authenticated again before its answer goes out."""

_UNKNOWN_METHOD: Final = "unknown"
"""What stands for a method that isn't served in metrics: callers choose such names."""

_UNKNOWN_METHOD_ACCESS: Final = Access(frozenset(IdentityKind))

_KINDS: Final[dict[tuple[bool, bool], tuple[str, Callable[..., RpcHandler]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By whether requests and responses are streams: where a handler has its function, and how one is made."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rpc:
    """One method.

    Attributes:
        method: Its full name, as it is logged and counted.
        access: Its row.
        behaviour: Its handler.
        read: From what grpc hands over (bytes, or a stream of them), context and call to what the handler takes.
        brief: One message each way: nothing is watched meanwhile, and an answer that took long is checked again.
        answers_only: A stream of answers: part of what it costs is what happens, and not its caller's doing.
    """

    method: str
    access: Access | None
    behaviour: Behaviour
    read: Callable[[Any, RpcContext, Call], Any]
    brief: bool = False
    answers_only: bool = False


class Edge(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services of one server."""

    def __init__(
        self,
        *,
        admission: AdmissionControl,
        denials: DenialRecorder,
        meter: Meter,
        clock: Clock,
        trail: AuditTrail,
        recheck: timedelta = timedelta(seconds=1),
    ) -> None:
        """Take what the edge works with; `recheck` is how often an open stream's caller is checked."""
        self._admission = admission
        self._access_log = AccessLog(clock)
        self._denials = Denials(denials, trail)
        self._meter = meter
        self._in_flight = 0
        meter.watch(metrics.RPC_IN_FLIGHT, lambda: self._in_flight)
        self._clock = clock
        self._open_streams = OpenStreams(clock, recheck)
        self._handlers: dict[str, RpcHandler] = {}

    def drain(self, retry_after: timedelta) -> None:
        """From now on refuse calls that may start an order; `retry_after` is when to try again."""
        self._admission.draining = retry_after
        self._meter.level(metrics.DRAINING, 1)

    def resume(self) -> None:
        """Take such calls again."""
        self._admission.draining = None
        self._meter.level(metrics.DRAINING, 0)

    def close(self) -> None:
        """No more calls will come."""
        self._access_log.close()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler:
        """The wrapped handler of a method; each is wrapped once."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            served = await continuation(handler_call_details)
            handler = self._wrap(method, served)
            if served is not None:  # names that aren't served are the caller's choice: they must not fill a table
                self._handlers[method] = handler
        return handler

    def _wrap(self, method: str, handler: RpcHandler | None) -> RpcHandler:
        if handler is None:
            # Reads no message and answers UNIMPLEMENTED, which tells a newer agent that this broker is older, but tells
            # it only to somebody who is known.
            rpc = _Rpc(_UNKNOWN_METHOD, _UNKNOWN_METHOD_ACCESS, unimplemented, lambda stream, *_: stream)
            return grpc.stream_stream_rpc_method_handler(self._serving(rpc))
        kind = (handler.request_streaming, handler.response_streaming)
        attribute, make = _KINDS[kind]
        deserialize = handler.request_deserializer or bytes

        def read(argument: Any, context: RpcContext, call: Call) -> Any:
            if kind[0]:
                return read_messages(deserialize, context, call.admit_message)
            return read_message(deserialize, argument)

        brief, answers_only = kind == (False, False), kind == (False, True)
        rpc = _Rpc(method, METHODS.get(method), getattr(handler, attribute), read, brief, answers_only)
        return make(self._serving(rpc), None, handler.response_serializer)

    def _serving(self, rpc: _Rpc) -> Behaviour:
        """What grpc calls: the method served, its end counted, logged and charged to its caller."""

        async def serving(argument: Any, context: RpcContext) -> Any:
            started = self._clock.monotonic()
            call = self._begin(rpc, context)
            call.work.steps = self._serve(rpc, argument, context, call, started)
            try:
                return await call.work
            finally:
                seconds = self._clock.monotonic() - started
                call.end(open_for=seconds if rpc.answers_only else 0.0)
                self._end(call, context, seconds, brief=rpc.brief)

        return serving

    async def _serve(self, rpc: _Rpc, argument: Any, context: RpcContext, call: Call, started: float) -> Any:
        checked: CheckedContext | None = None
        try:
            caller = await call.enter()
            request = _open(call, rpc.read(argument, context, call))
            if rpc.brief:
                with self._span(rpc, call, context) as span:
                    response = await rpc.behaviour(request, context)
                    note_code(span, "OK")
                if self._clock.monotonic() - started > _RECHECK_AFTER_SECONDS:
                    call.check_again()
            else:
                checked = CheckedContext(context, call.check_again)
                with self._open_streams.watching(caller.not_after, call.check_again):
                    response = await run_stream(rpc.behaviour, request, checked)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            return response
        except RefusalError as error:
            await call.hold_back(error, context.time_remaining())
            call.reason = error.refusal.reason
            logged_request_id.set(call.named())
            await self._denials.note(call, error, by_edge=isinstance(error, EdgeRefusalError))
            await abort(call, context, error.refusal, checked)
        except grpc.aio.AbortError:
            raise
        except CallerGoneError:
            raise asyncio.CancelledError from None  # as grpc does where it hears of it before a message is written
        except Exception:
            # The caller learns the request's id, the log has the rest.
            logged_request_id.set(call.named())
            _logger.exception("a call failed unexpectedly", extra={"fields": {"method": rpc.method}})
            call.reason = Reason.INTERNAL
            text = f"internal error; the broker's log has it as request {call.request_id}"
            await abort(call, context, Refusal(Reason.INTERNAL, text), checked)

    def _span(self, rpc: _Rpc, call: Call, context: RpcContext) -> AbstractContextManager[Span]:
        """Of a caller who is known: nobody else's word makes one, or says that it is to be kept."""
        if not tracing.on():
            return tracing.span("")
        above = context_of(context.invocation_metadata())
        attributes = {"certplane.request_id": call.named()}
        if call.caller is not None:
            attributes["certplane.identity"] = call.caller.name
        return call_span(rpc.method, SpanKind.SERVER, above, attributes)

    def _begin(self, rpc: _Rpc, context: RpcContext) -> Call:
        user_agent = ""
        request_id = ""
        for key, value in context.invocation_metadata() or ():
            if key == "user-agent":
                user_agent = str(value)
            elif key == REQUEST_ID_KEY and is_request_id(str(value)):
                request_id = str(value)
        self._in_flight += 1
        peer = peer_of(context.auth_context(), context.peer(), user_agent)
        return Call(self._admission, rpc.method, rpc.access, peer, request_id, not rpc.brief)

    def _end(self, call: Call, context: RpcContext, seconds: float, *, brief: bool) -> None:
        self._in_flight -= 1
        code = code_name(context.code(), sys.exc_info()[1])
        self._meter.count(metrics.RPC_CALLS, method=call.method, code=code, reason=call.reason)
        if brief:  # how long a stream was open says nothing of how fast anything was
            self._meter.observe(metrics.RPC_SECONDS, timedelta(seconds=seconds), method=call.method)
        if self._access_log.enabled:
            fields = {
                "method": call.method,
                "code": code,
                "reason": call.reason,
                "identity": call.caller.name if call.caller else "",
                "source_ip": call.peer.source_ip,
                "user_agent": call.peer.user_agent,
                "ms": round(seconds * 1000, 1),
            }
            self._access_log.note(fields)


def _open(call: Call, request: Any) -> Any:
    """Give the call its id, the request's own if it brings one, and make it known to the servicer."""
    own = getattr(request, "request_id", "")
    if own:
        call.request_id = valid_request_id(own)
    logged_request_id.set(call.named())
    serving.set(call)
    return request
