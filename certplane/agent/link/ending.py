"""How a status stream ended, whoever ended it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

import grpc

from certplane.errors import OF_ONE_BROKER, Refusal
from certplane.rpc.choice import AVOID
from certplane.rpc.failures import words_of
from certplane.rpc.status import refusal_from_error
from certplane.rpc.times import span_of
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

_MOST_REASON: Final = 500
"""Octets of what the broker says at parting that are passed on."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended.

    `code` is gRPC's, if it failed; `retry_after` the broker's word on when to come back; `unwell` says that the broker
    went silent, or can't be reached.
    """

    text: str
    code: grpc.StatusCode | None = None
    refusal: Refusal | None = None
    retry_after: timedelta | None = None
    goodbye: bool = False
    unwell: bool = False

    @classmethod
    def by_error(cls, error: grpc.aio.AioRpcError) -> Self:
        """The broker refused, or the call failed."""
        refusal = refusal_from_error(error)
        if refusal is None:
            return cls(words_of(error), error.code())
        return cls(f"{refusal.reason}: {refusal.message}", error.code(), refusal, refusal.retry_after)

    @classmethod
    def by_goodbye(cls, goodbye: pb.StreamRenewalStatusResponse.Goodbye) -> Self:
        """The broker ends the stream on purpose."""
        text = printable(goodbye.reason, _MOST_REASON) or "no reason given"
        return cls(f"the broker said goodbye: {text}", retry_after=span_of(goodbye.reconnect_delay), goodbye=True)

    @property
    def hold(self) -> timedelta | None:
        """How long to leave this broker for another; None where the others would do no better.

        A goodbye says it; what the broker says with a refusal can only make the usual time longer.
        """
        if self.goodbye:
            return AVOID if self.retry_after is None else self.retry_after
        if self.refusal is not None:
            return max(AVOID, self.retry_after or AVOID) if self.refusal.reason in OF_ONE_BROKER else None
        return AVOID if self.unwell or self.code is grpc.StatusCode.UNAVAILABLE else None

    @property
    def is_lost(self) -> bool:
        """Whether the broker's own word didn't reach us.

        A call that the broker ends while hello is being written has, in grpc.aio, only this status of its own.
        """
        return (
            self.code is grpc.StatusCode.INTERNAL and self.refusal is None and "Internal error from Core" in self.text
        )
