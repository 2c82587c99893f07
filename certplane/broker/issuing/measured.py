"""Calls of the issuing process, measured: how long what is asked of CAs and of the DNS takes, and how it ends.

A call is one operation of a port with all the questions that it takes at a CA, a provider or name servers, and its way
to the process and back. What touches neither, and the checks of a start, aren't measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final, TypeVar

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.child import ChildEndedError
from certplane.broker.issuing.remote import Calls
from certplane.broker.ports import Meter
from certplane.broker.renewal.model import RenewalInfoError, RenewalInfoUnsupportedError
from certplane.errors import RefusalError
from certplane.runtime import tracing
from certplane.runtime.clock import Clock
from certplane.runtime.tracing import SpanKind

R = TypeVar("R")

_AT_CAS: Final[Mapping[type, str]] = {
    m.CreateOrder: "create_order",
    m.GetOrder: "get_order",
    m.AnswerChallenges: "answer_challenges",
    m.Finalize: "finalize",
    m.Download: "download",
    m.Revoke: "revoke",
    m.AskRenewalInfo: "renewal_info",
}
_ON_DNS: Final[Mapping[type, str]] = {m.Present: "present", m.WaitUntilVisible: "propagation", m.Remove: "remove"}


class MeasuredCalls(Calls):
    """`Calls` that measures another's."""

    def __init__(self, calls: Calls, clock: Clock, meter: Meter) -> None:
        """Measures `calls`."""
        self._calls, self._clock, self._meter = calls, clock, meter

    @override
    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        begun, result = self._clock.monotonic(), "ok"
        try:
            with tracing.span(type(call).__name__, SpanKind.CLIENT):
                return await self._calls.ask(call, tell)
        except BaseException as error:
            result = _result(error)
            raise
        finally:
            self._note(call, timedelta(seconds=self._clock.monotonic() - begun), result)

    def _note(self, call: m.Call[R], span: timedelta, result: str) -> None:
        kind = type(call)
        if (name := _AT_CAS.get(kind)) is not None:
            issuer: str = call.issuer  # type: ignore[attr-defined]  # all of these have one
            self._meter.observe(metrics.CA_CALLS, span, issuer=issuer, call=name, result=result)
        elif (name := _ON_DNS.get(kind)) is not None:
            self._meter.observe(metrics.DNS_CALLS, span, call=name, result=result)


def _result(error: BaseException) -> str:
    match error:
        case RefusalError():
            return str(error.refusal.reason)
        case RenewalInfoUnsupportedError():
            return "unsupported"
        case RenewalInfoError():
            return "unavailable" if error.temporary else "unusable"
        case ChildEndedError():
            return "cut_off"
        case asyncio.CancelledError():
            return "cancelled"
        case _:
            return "fault"
