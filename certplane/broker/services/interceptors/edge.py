"""The one interceptor: everything between a connection and a servicer, in a single wrapper around each handler.

For each call, in this order: authenticate (design, fixed decision 2), take from the caller's allowance, see that its
certificate is the one in use (fixed decision 11), check the access table, read the message, take or make the request's
id, serve, count, log, and charge the allowance with the work that this was (docs/adr/0013). Nothing that costs is done
for anybody before a bucket was asked: for a caller that is refused it is the bucket of its certificate and address, for
a message of a stream it is asked before the message is read. A refusal becomes a rich status; anything unexpected
becomes INTERNAL with the request's id and nothing else, and the log has the traceback. What the edge refuses it also
audits; what the story refuses the story has audited.

Streams are looked after while they are open (`open_streams`): the caller is authenticated again before each message
that goes out, every `recheck`, and at the moment its certificate ends.

One wrapper instead of a chain of interceptors because each link costs a coroutine per call, and because the order above
is a rule that is best read in one place. Messages are read here, not by grpc, so that nobody who isn't known reaches a
parser, and a message that can't be read is a refusal like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeAlias

import grpc

from certplane.broker import metrics
from certplane.broker.model import Caller, IdentityKind
from certplane.broker.ports import DenialRecorder, Meter
from certplane.broker.services.calls import Call, EdgeRefusalError, is_request_id, serving, valid_request_id
from certplane.broker.services.interceptors.access import METHODS, Access, check_access
from certplane.broker.services.interceptors.access_log import AccessLog
from certplane.broker.services.interceptors.allowances import Allowances
from certplane.broker.services.interceptors.authentication import (
    Admission,
    AuthenticationError,
    Authenticator,
    Peer,
    peer_of,
)
from certplane.broker.services.interceptors.denials import denial_event
from certplane.broker.services.interceptors.first_use import FirstUse
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
from certplane.broker.services.interceptors.work import Work
from certplane.errors import Reason, Refusal, RefusalError
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.runtime.clock import Clock
from certplane.runtime.logging import request_id as logged_request_id

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a string, since it is generic in its stubs alone
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler | None]]"

REQUEST_ID_KEY: Final = "x-request-id"
"""Metadata key: of a request that has no field for it, and of every answer's trailing metadata."""

_RECHECK_AFTER_SECONDS: Final = 1.0
"""A unary call that took longer is authenticated again before its answer goes out."""

_NO_DECISION: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE})
"""A first use that can't be recorded says nothing about the caller, and couldn't be audited either."""

_ABORT_SECONDS: Final = 2.0
"""What a refusal's way out may take: it is at once unless the caller doesn't read its stream."""

Serve: TypeAlias = "Callable[[Any, RpcContext, Call, Peer, Work[Any]], Coroutine[Any, Any, Any]]"

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


class Edge(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services of one server."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        first_use: FirstUse,
        allowances: Allowances,
        denials: DenialRecorder,
        meter: Meter,
        clock: Clock,
        new_event_id: Callable[[], str],
        recheck: timedelta = timedelta(seconds=1),
    ) -> None:
        """Take what the edge works with; `recheck` is how often an open stream's caller is looked at."""
        self._authenticator = authenticator
        self._first_use = first_use
        self._allowances = allowances
        self._access_log = AccessLog(clock)
        self._denials = denials
        self._meter = meter
        self._in_flight = 0
        self._clock = clock
        self._new_event_id = new_event_id
        self._open_streams = OpenStreams(clock, recheck)
        self._handlers: dict[str, RpcHandler] = {}
        self._draining: timedelta | None = None

    def drain(self, retry_after: timedelta) -> None:
        """From now on refuse calls that may start an order; `retry_after` is when to try again."""
        self._draining = retry_after
        self._meter.level(metrics.DRAINING, 1)

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
            serve = self._serving(_UNKNOWN_METHOD, _UNKNOWN_METHOD_ACCESS, unimplemented, lambda stream, *_: stream)
            return grpc.stream_stream_rpc_method_handler(self._measured(_UNKNOWN_METHOD, 1, serve))
        kind = (handler.request_streaming, handler.response_streaming)
        attribute, make = _KINDS[kind]
        deserialize = handler.request_deserializer or bytes

        def read(argument: Any, context: RpcContext, admit: Callable[[], Awaitable[None]]) -> Any:
            return read_messages(deserialize, context, admit) if kind[0] else read_message(deserialize, argument)

        brief, access = kind == (False, False), METHODS.get(method)
        serve = self._serving(method, access, getattr(handler, attribute), read, brief=brief)
        cost = 1 if access is None else access.cost
        measured = self._measured(method, cost, serve, brief=brief, answers_only=kind == (False, True))
        return make(measured, None, handler.response_serializer)

    def _measured(
        self, method: str, cost: int, serve: Serve, *, brief: bool = False, answers_only: bool = False
    ) -> Behaviour:
        """What grpc calls: `serve` with its end counted, logged and charged to its caller.

        Args:
            method: Its full name.
            cost: Tokens that a call takes.
            serve: See `_serving`.
            brief: One message each way.
            answers_only: A stream of answers: part of what it costs is what happens, and not its caller's doing.
        """

        async def measured(argument: Any, context: RpcContext) -> Any:
            started = self._clock.monotonic()
            call, peer = self._begin(method, context)
            work: Work[Any] = Work(self._clock.thread_time)
            work.steps = serve(argument, context, call, peer, work)
            try:
                return await work
            finally:
                if call.caller is None and call.stranger:
                    self._allowances.pay_refusal(call.stranger, work.seconds)
                elif call.caller is not None:
                    open_for = self._clock.monotonic() - started if answers_only else 0.0
                    self._allowances.pay_call(call.caller, cost, work.since_asked(), open_for=open_for)
                self._end(call, peer, context, self._clock.monotonic() - started, brief=brief)

        return measured

    def _serving(
        self,
        method: str,
        access: Access | None,
        behaviour: Behaviour,
        read: Callable[[Any, RpcContext, Callable[[], Awaitable[None]]], Any],
        *,
        brief: bool = False,
    ) -> Serve:
        """The wrapper of one method's handler.

        Args:
            method: Its full name, as it is logged and counted.
            access: Its row.
            behaviour: Its handler.
            read: From what grpc hands over (bytes, or a stream of them), the context, and who admits each message of a
                stream, to what the handler takes.
            brief: One message each way: nothing is watched meanwhile, and an answer that took long is looked at again.
        """
        cost = 1 if access is None else access.cost

        async def serve(argument: Any, context: RpcContext, call: Call, peer: Peer, work: Work[Any]) -> Any:
            started = self._clock.monotonic()
            admitted = in_flight = False
            checked: CheckedContext | None = None
            try:
                admission = self._authenticate(call, peer, cost)
                caller = admission.caller
                self._allowances.begin(caller.name, stream=not brief)
                in_flight = True
                using = self._first_use.begin(call, caller)
                if using is not None:
                    await using
                self._admit(caller, access)
                admitted = True
                admit = _AdmitMessage(self._allowances, caller.name, work, self._clock)
                call.take_messages = admit.take
                request = self._open(call, read(argument, context, admit))
                if brief:
                    response = await behaviour(request, context)
                    if self._clock.monotonic() - started > _RECHECK_AFTER_SECONDS:
                        _Recheck(self, call, peer, access, admission)()
                else:
                    check = _Recheck(self, call, peer, access, admission)
                    checked = CheckedContext(context, check)
                    with self._open_streams.watching(caller.not_after, check):
                        response = await run_stream(behaviour, request, checked)
                context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
                return response
            except RefusalError as error:
                if not admitted and error.refusal.reason is Reason.RATE_LIMITED:
                    name = call.caller.name if call.caller is not None else call.stranger
                    await self._allowances.hold_back(name, context.time_remaining())
                await self._refuse(call, peer, context, error, checked, audit=not admitted)
            except grpc.aio.AbortError:
                raise
            except Exception:
                # The caller learns the request's id, the log has the rest.
                logged_request_id.set(call.named())
                _logger.exception("a call failed unexpectedly", extra={"fields": {"method": method}})
                call.reason = Reason.INTERNAL
                text = f"internal error; the broker's log has it as request {call.request_id}"
                await _abort(call, context, Refusal(Reason.INTERNAL, text), checked)
            finally:
                if in_flight and call.caller is not None:
                    self._allowances.end(call.caller.name, stream=not brief)

        return serve

    def _begin(self, method: str, context: RpcContext) -> tuple[Call, Peer]:
        user_agent = ""
        request_id = ""
        for key, value in context.invocation_metadata() or ():
            if key == "user-agent":
                user_agent = str(value)
            elif key == REQUEST_ID_KEY and is_request_id(str(value)):
                request_id = str(value)
        self._note_in_flight(1)
        return Call(method, request_id), peer_of(context.auth_context(), context.peer(), user_agent)

    def _authenticate(self, call: Call, peer: Peer, cost: int) -> Admission:
        """Who calls, if not too often, or raise why not; sets the call's caller, or the stranger it is."""
        try:
            admission = self._authenticator.admit(peer)
        except AuthenticationError as error:
            names = error.certificate.names if error.certificate is not None else ()
            call.stranger = " ".join(names[:4]) or _leaf_hash(peer)
            self._allowances.take_refusal(call.stranger, "" if names else peer.source_ip)
            raise
        except RefusalError:
            call.stranger = _leaf_hash(peer)
            raise
        call.caller = admission.caller
        self._allowances.take_call(admission.caller.name, cost)
        return admission

    def _admit(self, caller: Caller, access: Access | None) -> None:
        """Let the call in, or raise why not."""
        rules = check_access(access, caller)
        if rules.issuing and self._draining is not None:
            raise RefusalError(
                Reason.DRAINING, "the broker is shutting down; ask again shortly", retry_after=self._draining
            )

    def admit_again(self, call: Call, peer: Peer, access: Access | None, admission: Admission) -> Admission:
        """What letting the call in rests on now, or raise what has changed."""
        if not self._authenticator.stands(admission):
            admission = self._authenticator.admit(peer)
            if call.caller is not None and admission.caller.name != call.caller.name:
                raise AuthenticationError(Reason.IDENTITY_UNKNOWN, "the identity is now another; call again")
            check_access(access, admission.caller)
        self._first_use.check_open(admission.caller)
        return admission

    def _open(self, call: Call, request: Any) -> Any:
        """Give the call its id, the request's own if it brings one, and make it known to the servicer."""
        own = getattr(request, "request_id", "")
        if own:
            call.request_id = valid_request_id(own)
        logged_request_id.set(call.named())
        serving.set(call)
        return request

    async def _refuse(
        self,
        call: Call,
        peer: Peer,
        context: RpcContext,
        error: RefusalError,
        checked: CheckedContext | None,
        *,
        audit: bool,
    ) -> NoReturn:
        refusal = error.refusal
        call.reason = refusal.reason
        logged_request_id.set(call.named())
        decided = refusal.reason not in _NO_DECISION
        if (audit and decided) or isinstance(error, (AuthenticationError, EdgeRefusalError)):
            try:
                event = denial_event(call, peer, error, clock=self._clock, new_id=self._new_event_id)
                await self._denials.record(event)
            except Exception:
                # The caller is refused either way; what can't be recorded is at least in the log.
                _logger.exception("a denial could not be audited", extra={"fields": {"method": call.method}})
        await _abort(call, context, refusal, checked)

    def _end(self, call: Call, peer: Peer, context: RpcContext, seconds: float, *, brief: bool) -> None:
        self._note_in_flight(-1)
        code = _code_name(context.code(), sys.exc_info()[1])
        self._meter.count(metrics.RPC_CALLS, method=call.method, code=code, reason=call.reason)
        if brief:  # how long a stream was open says nothing of how fast anything was
            self._meter.observe(metrics.RPC_SECONDS, timedelta(seconds=seconds), method=call.method)
        if self._access_log.enabled:
            fields = {
                "method": call.method,
                "code": code,
                "reason": call.reason,
                "identity": call.caller.name if call.caller else "",
                "source_ip": peer.source_ip,
                "user_agent": peer.user_agent,
                "ms": round(seconds * 1000, 1),
            }
            self._access_log.note(fields)

    def _note_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._meter.level(metrics.RPC_IN_FLIGHT, self._in_flight)


class _Recheck:
    """Looks at the caller of an open call; raises what has changed since it was let in. A few microseconds."""

    __slots__ = ("_access", "_admission", "_call", "_edge", "_peer")

    def __init__(self, edge: Edge, call: Call, peer: Peer, access: Access | None, admission: Admission) -> None:
        self._edge = edge
        self._call = call
        self._peer = peer
        self._access = access
        self._admission = admission

    def __call__(self) -> None:
        self._admission = self._edge.admit_again(self._call, self._peer, self._access, self._admission)


class _AdmitMessage:
    """Lets a message of a stream in, before it is read."""

    __slots__ = ("_allowances", "_clock", "_name", "_work")

    def __init__(self, allowances: Allowances, name: str, work: Work[Any], clock: Clock) -> None:
        self._allowances = allowances
        self._clock = clock
        self._name = name
        self._work = work

    async def __call__(self) -> None:
        wait = self.take(1)
        if wait:
            await self._clock.sleep(wait)

    def take(self, messages: int) -> timedelta:
        """Count a message as so many."""
        return self._allowances.take_message(self._name, self._work.since_asked(), messages)


async def _abort(call: Call, context: RpcContext, refusal: Refusal, checked: CheckedContext | None) -> NoReturn:
    status = grpc_status(status_from_refusal(refusal, request_id=call.request_id))
    metadata = (*(status.trailing_metadata or ()), (REQUEST_ID_KEY, call.request_id))
    if checked is not None:
        await checked.idle(_ABORT_SECONDS)
    try:
        async with asyncio.timeout(_ABORT_SECONDS):
            await context.abort(status.code, status.details, metadata)
    except TimeoutError:
        # The status waits behind messages that nobody reads. Ending without it resets the stream, and frees them.
        raise asyncio.CancelledError from None
    except grpc.aio.AbortError:
        raise
    except Exception:
        # The core doesn't take the status any more: whom it is for has gone.
        _logger.debug("a refusal could not be sent", exc_info=True, extra={"fields": {"method": call.method}})
        raise asyncio.CancelledError from None
    raise RuntimeError("abort raises")


def _leaf_hash(peer: Peer) -> str:
    return hashlib.sha256(peer.leaf_pem).hexdigest()


_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def _code_name(code: Any, error: BaseException | None) -> str:
    """How a call ended, from what its context says (None, a number or a StatusCode) and what its handler raised."""
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED.name
    if code is None:
        return grpc.StatusCode.OK.name if error is None else grpc.StatusCode.UNKNOWN.name
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code, grpc.StatusCode.UNKNOWN.name)
