"""What a failed call means to the program that made it, where the broker gave no reason of its own."""

from __future__ import annotations

import asyncio

import grpc

from certplane.errors import OperationError
from certplane.runtime.text import printable

_MOST_DETAILS = 500
"""Octets of gRPC's own words, which a peer may have written."""


def words_of(error: grpc.aio.AioRpcError) -> str:
    """Code and details of a failure, for a message."""
    return f"{error.code().name}: {printable(error.details() or '', _MOST_DETAILS) or 'no details'}"


def failed_call(error: grpc.aio.AioRpcError, url: object, *, late: str) -> OperationError:
    """The error of a call to the broker at `url` that is no refusal; `late` is the remedy for one without an answer."""
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return OperationError(f"the broker at {url} didn't answer in time", remedy=late)
        case grpc.StatusCode.UNIMPLEMENTED:
            remedy = "check that broker.url is a Certplane broker; if it is, upgrade it: it is older than this program"
            return OperationError(f"the broker at {url} doesn't know this call ({words_of(error)})", remedy=remedy)
        case _:
            remedy = "check that broker.url is a Certplane broker, and check its log"
            return OperationError(f"{url} answered {words_of(error)}", remedy=remedy)


def is_cancelled() -> bool:
    """Whether a cancellation that has come is the task's own; a call raises the same when its channel is closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
