"""How a call ends, in gRPC's terms: the status that a refusal becomes, and the code that is counted and logged."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, NoReturn

import grpc

from certplane.broker.identity.admission import Call
from certplane.broker.services.interceptors.handlers import CheckedContext, RpcContext
from certplane.errors import Refusal
from certplane.rpc.status import grpc_status, status_from_refusal

REQUEST_ID_KEY: Final = "x-request-id"
"""Metadata key: of a request that has no field for it, and of every answer's trailing metadata."""

_ABORT_SECONDS: Final = 2.0
"""What a refusal's way out may take: it is at once unless the caller doesn't read its stream."""

_logger = logging.getLogger(__name__)


async def abort(call: Call, context: RpcContext, refusal: Refusal, checked: CheckedContext | None) -> NoReturn:
    """Refuse the call; `checked` is the context of a stream, which may have a message on its way out."""
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


_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def code_name(code: Any, error: BaseException | None) -> str:
    """How a call ended, from what its context says (None, a number or a StatusCode) and what its handler raised."""
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED.name
    if code is None:
        return grpc.StatusCode.OK.name if error is None else grpc.StatusCode.UNKNOWN.name
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code, grpc.StatusCode.UNKNOWN.name)
