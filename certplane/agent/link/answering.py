"""Directives of the broker are carried out, and answered: taken over and durable, or why not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol

from certplane.agent.link.messages import activations, directed_renewals, epoch_of
from certplane.agent.link.pacing import Pace
from certplane.agent.link.session import MOST_HASH
from certplane.agent.model import Activation, DirectedRenewal
from certplane.errors import CertplaneError, Reason, Refusal, RefusalError
from certplane.rpc.status import status_from_refusal
from certplane.runtime.clock import Clock
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

_BURST: Final = 20
_RATE: Final = 2.0
"""Directives at once and a second: each reads this host's certificates from disk."""
_QUIET: Final = timedelta(minutes=1)
_MOST_TEXT: Final = 500
"""Octets of a refusal that are logged."""

logger = logging.getLogger(__name__)


class DirectiveTaker(Protocol):
    """Does what the broker wants of this host."""

    async def renew(self, renewals: Sequence[DirectedRenewal]) -> None:
        """Keep the renewal times; durable on return, and the certificates concerned have been woken.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND; the others have been taken over.
            OperationError: the disk refuses.
        """
        ...

    async def activate(self, activations: Sequence[Activation]) -> None:
        """Let certificates be used that are held back; durable on return, and those concerned have been woken.

        One that this host doesn't have (any more) does nothing; one that may be on its way is kept.

        Raises:
            OperationError: the disk refuses.
        """
        ...

    async def connected(self) -> None:
        """The broker has answered on a new stream: let those try again that could not reach it."""
        ...

    async def policy_changed(self, policy_hash: str) -> None:
        """Another policy may be in force: if so, let those try again that the one before refused."""
        ...

    async def retry_epoch_changed(self, retry_epoch: str) -> None:
        """What the broker refused or failed at may succeed now: if this is another epoch, let all try again."""
        ...


class DirectiveAnswers:
    """Answers the directives of one stream, one at a time; the same one again has the same answer."""

    def __init__(self, taker: DirectiveTaker, clock: Clock) -> None:
        self._taker = taker
        self._clock = clock
        self._pace = Pace(_BURST, _RATE, clock)
        self._last: pb.StreamRenewalStatusRequest.DirectiveResult | None = None
        self._refused: dict[str, float] = {}

    async def answer(
        self, directive: pb.StreamRenewalStatusResponse.Directive
    ) -> pb.StreamRenewalStatusRequest.DirectiveResult:
        """Take a directive over; the answer says whether that is done, and durable."""
        if self._last is None or directive.nonce != self._last.nonce:
            await self._pace.take()
            self._last = await self._obey(directive)
        return self._last

    async def _obey(
        self, directive: pb.StreamRenewalStatusResponse.Directive
    ) -> pb.StreamRenewalStatusRequest.DirectiveResult:
        result = pb.StreamRenewalStatusRequest.DirectiveResult(nonce=directive.nonce)
        try:
            if directive.policy_hash:
                await self._taker.policy_changed(printable(directive.policy_hash, MOST_HASH))
            if retry_epoch := epoch_of(directive.retry_epoch):
                await self._taker.retry_epoch_changed(retry_epoch)
            renewals = directed_renewals(directive)
            # First: a renewal may wait for a certificate that is on its way.
            await self._taker.activate(activations(directive))
            await self._taker.renew(renewals)
        except RefusalError as error:
            refusal = error.refusal
        except CertplaneError as error:
            refusal = Refusal(Reason.STORE_UNAVAILABLE, f"this host could not store the directive: {error}")
        except Exception:  # a bug must not end the stream, nor be taken for an ACK
            logger.exception("carrying out a directive of the broker failed")
            refusal = Refusal(Reason.INTERNAL, "this host failed to follow the directive; its log says why")
        else:
            return result
        self._log_refused(refusal)
        result.error.CopyFrom(status_from_refusal(refusal))
        return result

    def _log_refused(self, refusal: Refusal) -> None:
        """A line for each kind of refusal, and no more than one a minute of a kind, however often it is given."""
        now = self._clock.monotonic()
        told = self._refused.get(refusal.reason)
        if told is None or now - told >= _QUIET.total_seconds():
            self._refused[refusal.reason] = now
            text = printable(refusal.message, _MOST_TEXT)
            logger.warning("refused a directive of the broker: %s: %s", refusal.reason, text)
        else:
            logger.debug("refused a directive of the broker: %s", refusal.reason)
