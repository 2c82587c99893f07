"""Asks the broker for one certificate, follows the order, and puts what comes on disk.

The key is on disk before its CSR is sent. A request that was interrupted is sent again as it was and joins the same
order, or gets the certificate that the order has brought meanwhile. What comes is checked against this host's own key
and names before it is stored.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing, suppress
from datetime import timedelta

from certplane.agent.lineage import Lineage, OrderFailedError, OrderUnderWayError
from certplane.agent.model import IssuedCertificate, OrderView, PendingRequest, Version
from certplane.agent.ports import Broker, OrderFollower
from certplane.agent.renewal.due import RenewReason
from certplane.agent.renewal.plan import Request
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.pki.chain import check_issued_chain
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.finishing import uninterrupted
from certplane.runtime.progress import Progress

FAILPOINTS = ("request.issue.before", "request.issue.after", "request.issued", "request.stage.after")

ORDER_PATIENCE = timedelta(minutes=10)
"""How long one step follows an order: DNS records take minutes to be seen everywhere, and a queue at the CA more."""

_AT_ONCE_PATIENCE = timedelta(minutes=15)
"""How long one step asks again what was too much at once: a thousand certificates that are due together take three."""
_MOST_SHORT = timedelta(seconds=30)
"""A wait up to this is for a turn, and no limit that ends with an hour, a day or a week."""
_FOLLOWED = 64
"""Orders that are followed at once: a connection has 128 streams, and what asks and reports needs some of them."""
_LAST_LOOK = timedelta(seconds=10)
"""What a look at an order gets however long it waited for its turn: it may have ended meanwhile."""
_POLL = Backoff(first=timedelta(seconds=2), most=timedelta(seconds=30), floor=timedelta(seconds=1))
_ENDED = ("ISSUED", "FAILED")
_NOTHING_COMES = frozenset({Reason.ORDER_NOT_FOUND, Reason.KEY_REUSED})
"""Refusals of an order, however it ends: the second where its key was blocked meanwhile."""
_MOST_TOLD = 50
"""Lines of one order in the log."""
_LIMITED = "the order waits for a place within the CA's limits"
_STATES = {
    "PENDING": "the order waits for its turn",
    "AUTHORIZED": "the CA has accepted the order",
    "VALIDATING": "DNS records are written and checked",
    "FINALIZING": "the CA signs",
}

logger = logging.getLogger(__name__)


def orders_followed() -> asyncio.Semaphore:
    """What bounds how many orders are followed over one connection."""
    return asyncio.Semaphore(_FOLLOWED)


class BrokerRequest:
    """`Requester` for a certificate.

    Args:
        lineage: the certificate's.
        profile: the profile that policy gives to this host.
        reuse_key: whether a renewal keeps the key.
        broker: asked for the certificate.
        orders: follows the order.
        clock: for the time that a step has.
        rng: spreads polls.
        progress: told the order's states.
        following: taken while an order is followed: one for all requests of a connection.
    """

    def __init__(
        self,
        lineage: Lineage,
        *,
        profile: str,
        reuse_key: bool,
        broker: Broker,
        orders: OrderFollower,
        clock: Clock,
        rng: random.Random,
        progress: Progress,
        following: asyncio.Semaphore | None = None,
    ) -> None:
        self._lineage = lineage
        self._profile = profile
        self._reuse_key = reuse_key
        self._broker = broker
        self._orders = orders
        self._clock = clock
        self._rng = rng
        self._progress = progress
        self._following = following or orders_followed()
        self._key_is_spent = self._is_ordered = False
        self._trouble = ""
        """What the order waits for, as the status has it."""
        self._told: set[str] = set()
        """What of it the log has: two causes may come in turns for minutes."""

    async def __call__(self, request: Request) -> Version:
        """See `Requester`.

        Raises:
            OrderFailedError: the order ended without a certificate.
            OrderUnderWayError: the step's time is over, the order isn't.
            RefusalError: the broker refused, or sent a certificate that isn't for this key and these names.
            OperationError: the broker can't be reached, or the disk refuses.
        """
        lineage = self._lineage
        self._trouble, self._told, self._is_ordered = "", set(), False
        pending, is_old = await self._begin(request)
        try:
            issued = await self._ordered(pending)
        except RefusalError as error:
            if error.refusal.reason is not Reason.KEY_REUSED or not (is_old or self._is_ordered):
                raise
            # A key of an earlier try, or one that was blocked while the order was under way, says nothing of another.
            logger.info("%s: %s; asking with a new key", lineage.name, error)
            self._key_is_spent = True
            await lineage.disk.run(lineage.keys.abandon)
            pending, _ = await self._begin(request)
            issued = await self._ordered(pending)
        return await uninterrupted(self._stage(issued, pending))

    async def _ordered(self, pending: PendingRequest) -> IssuedCertificate:
        """What comes of the pending request; which order it has become is durable before that is followed."""
        failpoint("request.issue.before")
        order = await self._issue(pending)
        self._is_ordered = True
        failpoint("request.issue.after")
        if order.order_id and order.order_id != pending.order_id:
            await self._lineage.disk.run(self._lineage.keys.record_order, order.order_id)
        issued = await self._followed(order)
        failpoint("request.issued")
        return issued

    async def _begin(self, request: Request) -> tuple[PendingRequest, bool]:
        """What is to be sent, and whether it has the key of an earlier try."""
        lineage = self._lineage
        left = await lineage.disk.run(lineage.keys.pending)
        pending = await lineage.disk.run(
            lineage.keys.begin,
            common_name="",
            sans=lineage.spec.dns_names,
            replaces_certificate_id="" if request.replaces is None else request.replaces.certificate_id,
            # A revocation spends the key, and the broker refuses it then.
            reuse_key=(
                self._reuse_key
                and not (self._key_is_spent or request.new_key)
                and request.reason is not RenewReason.REVOKED
            ),
        )
        return pending, left is not None and left.public_key_sha256 == pending.public_key_sha256

    async def _issue(self, pending: PendingRequest) -> OrderView:
        """The order, at once: what happens to it is followed, so that each state can be shown."""
        self._progress.step(self._lineage.name, "asking the broker")
        try:
            return await self._ask(pending.csr_pem, pending.replaces_certificate_id)
        except RefusalError as error:
            self._key_is_spent = error.refusal.reason is Reason.KEY_REUSED
            if error.refusal.reason is not Reason.CERTIFICATE_NOT_FOUND or not pending.replaces_certificate_id:
                raise
        # What it replaces is of another profile now, or the broker has forgotten it: then it is a first certificate.
        logger.info(
            "%s: the broker doesn't know the certificate to replace; requesting a first one", self._lineage.name
        )
        return await self._ask(pending.csr_pem, "")

    async def _ask(self, csr_pem: str, replaces_certificate_id: str) -> OrderView:
        """Ask, and again when it was only too much at once, as when many certificates of a host are due together."""
        until = self._clock.monotonic() + _AT_ONCE_PATIENCE.total_seconds()
        tries = 0
        while True:
            try:
                return await self._broker.issue(
                    profile=self._profile,
                    csr_pem=csr_pem,
                    replaces_certificate_id=replaces_certificate_id,
                    wait=timedelta(),
                )
            except RefusalError as error:
                told = error.refusal.retry_after
                if error.refusal.reason is not Reason.RATE_LIMITED or told is None or told > _MOST_SHORT:
                    raise
                tries += 1
                wait = max(told, _POLL.wait(tries, self._rng))
                if self._clock.monotonic() + wait.total_seconds() > until:
                    raise
            self._progress.step(self._lineage.name, "waiting: the broker accepts no more requests at the same time")
            await self._clock.sleep(wait)

    async def _followed(self, order: OrderView) -> IssuedCertificate:
        """The order's certificate, once it is there."""
        until = self._clock.monotonic() + ORDER_PATIENCE.total_seconds()
        failures = 0
        while order.state not in _ENDED:
            left = timedelta(seconds=until - self._clock.monotonic())
            if left <= timedelta():
                raise _still_open(order)
            await self._show(order)
            try:
                order = await self._watched(order, left)
                failures = 0
            except CertplaneError as error:
                if isinstance(error, RefusalError) and error.refusal.reason in _NOTHING_COMES:
                    raise
                failures += 1
                logger.info("%s: order %s can't be followed: %s", self._lineage.name, order.order_id, error)
            if order.state not in _ENDED:  # the watch ended early, as when the broker is restarted
                await self._clock.sleep(min(_POLL.wait(failures + 1, self._rng), left))
        if order.certificate is not None:
            return order.certificate
        if order.error is None:
            raise OperationError(
                f"the broker's order {order.order_id} is {order.state} without a certificate",
                remedy="check the broker's log",
            )
        raise OrderFailedError(RefusalError.of(order.error), order.retry_time)

    async def _watched(self, order: OrderView, left: timedelta) -> OrderView:
        """The order when it has ended, or as it is when the watch has."""
        begun = self._clock.monotonic()
        async with self._following:
            left -= timedelta(seconds=self._clock.monotonic() - begun)
            async with aclosing(self._orders.watch_order(order.order_id, max(left, _LAST_LOOK))) as states:
                async for seen in states:
                    if (seen.state, seen.trouble) != (order.state, order.trouble):
                        await self._show(seen)
                    order = seen
        return order

    async def _show(self, order: OrderView) -> None:
        """Where an open order is, and what it waits for: on the display, and the latter in log and status, once."""
        if order.state in _ENDED:
            return
        doing = _STATES.get(order.state, order.state) if order.wait_time is None else _LIMITED
        self._progress.step(self._lineage.name, f"{doing} ({order.trouble})" if order.trouble else doing)
        if order.trouble == self._trouble:
            return
        self._trouble = order.trouble
        if order.trouble and order.trouble not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(order.trouble)
            logger.info("%s: %s (%s)", self._lineage.name, doing, order.trouble)
        with suppress(CertplaneError):  # a disk that takes no status is told by what must be written
            await self._lineage.note_trouble(order.trouble, self._clock.now())

    async def _stage(self, issued: IssuedCertificate, pending: PendingRequest) -> Version:
        check_issued_chain(
            issued.certificate_pem + issued.chain_pem,
            public_key_sha256=pending.public_key_sha256,
            dns_names=self._lineage.spec.dns_names,
            now=self._clock.now(),
        )
        version = await self._lineage.disk.run(self._lineage.stage, issued, pending.replaces_certificate_id)
        failpoint("request.stage.after")
        return version


def _still_open(order: OrderView) -> OrderUnderWayError:
    if order.wait_time is None:
        text = f"order {order.order_id} is still {order.state} at the broker; the next run goes on with it"
        return OrderUnderWayError(text)
    text = (
        f"order {order.order_id} waits for a place within the CA's limits, until about "
        f"{order.wait_time:%Y-%m-%dT%H:%M:%SZ} ({order.trouble}); the next run goes on with it"
    )
    return OrderUnderWayError(text, expected=True)
