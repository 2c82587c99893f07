"""From a key to a certificate: asks the broker, follows the order, and checks what comes against the key and the names.

The same key and names join the same order, so that an order that was left (no connection, a process that died) is
joined by asking again.
"""

from __future__ import annotations

import logging
import random
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from certplane.caller.calls import BrokerCalls
from certplane.caller.errors import OrderFailedError, OrderUnderWayError
from certplane.caller.patience import next_wait
from certplane.caller.values import Certificate, Identity, Order
from certplane.errors import CertplaneError, Reason, RefusalError
from certplane.pki.chain import check_issued_chain
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

ORDER_PATIENCE: Final = timedelta(minutes=10)
"""How long an order is followed by default: DNS records take minutes to be seen everywhere, a queue at the CA more."""

_WAIT: Final = timedelta(seconds=20)
"""How long the broker is asked to wait in the call itself, which saves most callers a second one."""
_POLL: Final = Backoff(first=timedelta(seconds=2), most=timedelta(seconds=30), floor=timedelta(seconds=1))
"""After a refusal to tell of an order, without a time in it."""
_NOTHING_COMES: Final = frozenset({Reason.ORDER_NOT_FOUND, Reason.KEY_REUSED})
"""Refusals of an order, however it ends: the second where its key was blocked meanwhile."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate to ask for.

    Attributes:
        profile: The policy profile.
        csr_pem: PKCS #10, PEM.
        public_key_sha256: Of the CSR's key.
        dns_names: The names in the CSR.
        replaces: The certificate that it takes the place of, by its id; empty for a first one.
    """

    profile: str
    csr_pem: str
    public_key_sha256: str
    dns_names: tuple[str, ...]
    replaces: str = ""


def names_for(identity: Identity, profile: str) -> tuple[str, ...]:
    """The names that a certificate of the profile has for this caller.

    Raises:
        RefusalError: PROFILE_NOT_ALLOWED, or NAMES_NOT_ALLOWED where the broker doesn't tell them.
    """
    if profile not in identity.profiles:
        given = ", ".join(identity.profiles) or "none"
        raise RefusalError(
            Reason.PROFILE_NOT_ALLOWED, f"policy gives {identity.name} the profiles {given}, and not {profile}"
        )
    names = identity.dns_names.get(profile, ())
    if not names:
        raise RefusalError(
            Reason.NAMES_NOT_ALLOWED, f"the broker doesn't tell the names of profile {profile}; give them as dns_names"
        )
    return names


class Ordering:
    """Gets certificates over one connection.

    Args:
        calls: To the broker.
        clock: For the time that is given, and for what is valid.
        rng: Spreads polls.
    """

    def __init__(self, calls: BrokerCalls, clock: Clock, rng: random.Random) -> None:
        self._calls = calls
        self._clock = clock
        self._rng = rng

    async def obtain(self, wanted: Wanted, timeout: timedelta = ORDER_PATIENCE) -> Certificate:
        """The certificate, with its PEM, checked.

        Raises:
            OrderFailedError: the order ended without one.
            OrderUnderWayError: the time is over, the order isn't.
            RefusalError: the broker refused, or sent what isn't for this key and these names.
            OperationError: the broker can't be reached.
        """
        until = self._clock.monotonic() + timeout.total_seconds()
        order = await self._followed(await self._asked(wanted, until), until)
        if order.certificate is None:
            raise OrderFailedError.of_order(order, self._clock.now())
        found = order.certificate
        checked = check_issued_chain(
            found.fullchain_pem,
            public_key_sha256=wanted.public_key_sha256,
            dns_names=wanted.dns_names,
            now=self._clock.now(),
        )
        return replace(found, certificate_pem=checked.certificate_pem, chain_pem=checked.chain_pem)

    async def _asked(self, wanted: Wanted, until: float) -> Order:
        try:
            return await self._issue(wanted, wanted.replaces, until)
        except RefusalError as error:
            if error.reason is not Reason.CERTIFICATE_NOT_FOUND or not wanted.replaces:
                raise
        # What it replaces is of another profile now, or the broker has forgotten it: then it is a first certificate.
        return await self._issue(wanted, "", until)

    async def _issue(self, wanted: Wanted, replaces: str, until: float) -> Order:
        left = timedelta(seconds=max(until - self._clock.monotonic(), 0.001))
        return await self._calls.issue(
            profile=wanted.profile, csr_pem=wanted.csr_pem, replaces=replaces, wait=min(_WAIT, left), timeout=left
        )

    async def _followed(self, order: Order, until: float) -> Order:
        failures = 0
        while not order.ended:
            left = timedelta(seconds=until - self._clock.monotonic())
            if left <= timedelta():
                raise OrderUnderWayError(order)
            told, unreached = None, True  # the watch may end early, as when the broker is restarted
            try:
                order = await self._watched(order, left)
                failures = 0
            except CertplaneError as error:
                if error.reason in _NOTHING_COMES:
                    raise
                failures += 1
                told, unreached = error.retry_after, not isinstance(error, RefusalError)
                logger.info("order %s can't be followed: %s", order.order_id, error)
            if not order.ended:
                wait = next_wait(told=told, unreached=unreached, failures=failures + 2, left=left, rng=self._rng)
                await self._clock.sleep(min(wait or _POLL.wait(failures, self._rng), left))
        return order

    async def _watched(self, order: Order, left: timedelta) -> Order:
        async with aclosing(self._calls.watch_order(order.order_id, left)) as states:
            async for seen in states:
                order = seen
        return order
