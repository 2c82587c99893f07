"""The exchanges of one account with its CA: the session that they share, and what may be repeated until when."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from certplane.broker.issuers.acme_client import AcmeClient, AcmeSession
from certplane.broker.issuers.acme_errors import AcmeError, too_late
from certplane.broker.issuers.acme_registration import Registration, Run
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff

T = TypeVar("T")
_log = logging.getLogger(__name__)

REPEAT = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=15), floor=timedelta(milliseconds=200))
"""Waits between tries of a call that is safe to repeat."""


def unavailable(error: RefusalError) -> bool:
    """Whether a request that may be sent twice is worth another try. A rate limit isn't: its wait is the caller's."""
    return error.refusal.reason is Reason.ISSUER_UNAVAILABLE


def unsent(error: RefusalError) -> bool:
    """Whether a request that must not be sent twice may be tried again."""
    return unavailable(error) and isinstance(error, AcmeError) and error.unsent


class AcmeExchanges:
    """Runs exchanges with the CA, each within its deadline.

    The directory is fetched and the account looked up or made before the first exchange; a CA that doesn't know the
    account any more (a test CA that was restarted, a restored backup) gets it again, with the same key.
    """

    def __init__(self, registration: Registration, *, rng: random.Random, repeat_waits: Backoff = REPEAT) -> None:
        """Nothing is sent yet.

        Args:
            registration: the account.
            rng: for the jitter of repeats.
            repeat_waits: between tries of a call that is safe to repeat.
        """
        self._registration, self._rng, self._repeat_waits = registration, rng, repeat_waits
        self._session: AcmeSession | None = None
        self._session_lock = asyncio.Lock()

    @property
    def account_url(self) -> str:
        """The account's URL; empty before the first exchange."""
        return self._session.account_url if self._session is not None else ""

    async def call(
        self,
        exchange: Callable[[AcmeClient], Awaitable[T]],
        deadline: Deadline,
        *,
        may_repeat: Callable[[RefusalError], bool] = unavailable,
    ) -> T:
        """Run `exchange` until it succeeds, fails for good, or the deadline leaves no time for another try.

        Raises:
            AcmeError: how it failed last.
        """
        session = await self.session(deadline)
        signing = self._registration.key
        try:
            return await self._repeat(self._of(exchange, session), deadline, may_repeat)
        except AcmeError as error:
            # The CA looked no further than account and signature, so that the exchange can have had no effect (RFC 8555
            # 6.7): who has lost the account makes it again, and who has an old key reads the one that is in force.
            lost = error.is_problem("accountDoesNotExist")
            unsigned = error.is_problem("unauthorized", "malformed")
            if not lost and not (unsigned and await self._registration.has_another_key(signing)):
                raise

        def gone(error: RefusalError) -> bool:
            """What it had of an account that it has lost won't turn up."""
            return lost and isinstance(error, AcmeError) and error.missing

        why = "the CA doesn't know the account any more" if lost else "the account has another key now"
        _log.warning("%s: looking it up again", why, extra={"fields": {"acme_account_url": session.account_url}})
        if self._session is session:
            self._session = None
        found = self._of(exchange, await self.session(deadline))
        try:
            return await self._repeat(found, deadline, lambda error: may_repeat(error) and not gone(error))
        except AcmeError as error:
            if gone(error):
                error.refusal = replace(error.refusal, reason=Reason.ISSUER_REJECTED)
            raise

    async def session(self, deadline: Deadline, *, fresh_directory: bool = False) -> AcmeSession:
        """The directory and the account, looked up or made if that wasn't done yet.

        Args:
            deadline: when it must have ended.
            fresh_directory: read the directory anew.
        """
        if self._session is not None and not fresh_directory:
            return self._session
        async with self._alone(deadline) as run:
            if self._session is None:
                self._session = await self._registration.open(run)
            elif fresh_directory:
                self._session = replace(self._session, directory=await self._registration.directory(run))
            return self._session

    async def note_directory(self, deadline: Deadline) -> None:
        """Ask for the directory once, for the log. Raises `AcmeError`."""
        await self._registration.directory(lambda attempt: self._once(attempt, deadline))

    async def look_at_key(self, deadline: Deadline) -> None:
        """Use the account's key that is kept now. Raises `AcmeError`."""
        async with self._alone(deadline) as run:
            await self._registration.look_at_key(run)

    async def find_account(self, deadline: Deadline) -> AcmeSession | None:
        """The account, None if there is none yet."""
        async with self._alone(deadline) as run:
            return await self._registration.find(run)

    async def roll_over(self, deadline: Deadline) -> AcmeSession:
        """Give the account a new key. Raises as `Registration.roll_over`."""
        session = await self.session(deadline)
        async with self._alone(deadline) as run:
            await self._registration.roll_over(session, run)
        return session

    @asynccontextmanager
    async def _alone(self, deadline: Deadline) -> AsyncIterator[Run]:
        """One at a time sees to the account, within the deadline: by exchanges that are safe to repeat."""
        try:
            async with asyncio.timeout(deadline.left.total_seconds()), self._session_lock:
                yield lambda attempt: self._repeat(attempt, deadline, unavailable)
        except TimeoutError as error:
            raise too_late() from error

    def _of(self, exchange: Callable[[AcmeClient], Awaitable[T]], session: AcmeSession) -> Callable[[], Awaitable[T]]:
        return lambda: exchange(self._registration.client(session.directory, account_url=session.account_url))

    async def _repeat(
        self, attempt: Callable[[], Awaitable[T]], deadline: Deadline, may_repeat: Callable[[RefusalError], bool]
    ) -> T:
        return await repeat(
            lambda: self._once(attempt, deadline),
            deadline=deadline,
            backoff=self._repeat_waits,
            rng=self._rng,
            on=AcmeError,
            when=may_repeat,
        )

    async def _once(self, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        try:
            async with asyncio.timeout(deadline.left.total_seconds()):
                return await attempt()
        except TimeoutError as error:
            # The connection is closed; what was sent may still arrive.
            raise too_late() from error
