"""A broker's refusals as they arrive: read whole, and held to the layout that docs/errors.md promises for each code."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from certplane.errors import Reason, Refusal
from certplane.rpc.status import CODES, refusal_from_status

ALWAYS: dict[grpc.StatusCode, tuple[str, ...]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ("BadRequest",),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("QuotaFailure", "RetryInfo"),
    grpc.StatusCode.UNAVAILABLE: ("RetryInfo",),
    grpc.StatusCode.ABORTED: ("RetryInfo",),
}
"""What a status of this code carries beside its ErrorInfo (design, "Errors")."""

ONLY_SOMETIMES: dict[grpc.StatusCode, tuple[str, ...]] = {
    grpc.StatusCode.FAILED_PRECONDITION: ("PreconditionFailure", "RetryInfo"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("PreconditionFailure",),
    grpc.StatusCode.UNAVAILABLE: ("PreconditionFailure",),
}
"""What it may carry besides: what a CA said, and when it said to come back."""


@dataclass(frozen=True)
class Refused:
    """A refusal, which messages its status had beside the ErrorInfo, and the request's id that came with it."""

    refusal: Refusal
    details: tuple[str, ...]
    request_id: str

    @property
    def reason(self) -> Reason:
        return self.refusal.reason

    @property
    def fields(self) -> list[str]:
        """What BadRequest or QuotaFailure names."""
        return [violation.subject for violation in self.refusal.violations]


async def refused(call: Awaitable[Any]) -> Refused:
    """How a call was refused; its code and layout are those of its reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    status = rpc_status.from_call(cast("grpc.Call", error))  # has what from_call reads of a call
    assert status is not None, error
    found = _read(status)
    assert error.code() is CODES[found.reason].code
    assert dict(error.trailing_metadata() or ())["x-request-id"] == found.request_id
    return found


def refused_order(status: status_pb2.Status) -> Refused:
    """How an order failed, from `Order.error`."""
    found = _read(status)
    assert status.code == CODES[found.reason].code.value[0]
    return found


def _read(status: status_pb2.Status) -> Refused:
    refusal = refusal_from_status(status)
    assert refusal is not None, status
    names = [detail.TypeName().removeprefix("google.rpc.") for detail in status.details]
    assert names.pop(0) == "ErrorInfo"
    code = CODES[refusal.reason].code
    always = ALWAYS.get(code, ())
    assert set(always) <= set(names), f"{refusal.reason} lacks some of {always}: {names}"
    assert set(names) <= {*always, *ONLY_SOMETIMES.get(code, ())}, names
    assert refusal.message.isprintable()
    return Refused(refusal, tuple(names), _request_id(status))


def _request_id(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.metadata["request_id"])
