"""The ACME clients of one account: a bounded pool of workers, the session they share, and what may be repeated."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_client import AcmeClient, AcmeSession
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_network import AcmeError
from certplane.broker.issuers.acme_registration import Exchanges, Registration
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.pool import BlockingPool

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


class AcmeWorkers:
    """Runs exchanges with the CA, each on a worker with a client of its own.

    The directory is fetched and the account looked up or made before the first exchange; a CA that doesn't know the
    account any more (a test CA that was restarted, a restored backup) gets it again, with the same key.
    """

    def __init__(
        self,
        new_client: Callable[[AccountKey], AcmeClient],
        registration: Registration,
        *,
        size: int,
        rng: random.Random,
        repeat_waits: Backoff = REPEAT,
    ) -> None:
        """Nothing is sent yet.

        Args:
            new_client: makes a worker's client, which signs with this key.
            registration: the account.
            size: exchanges under way at once.
            rng: for the jitter of repeats.
            repeat_waits: between tries of a call that is safe to repeat.
        """
        self._repeat_waits = repeat_waits
        self._new_client, self._registration, self._rng = new_client, registration, rng
        self._pool = BlockingPool("acme", size)
        self._idle: deque[AcmeClient] = deque()  # append and pop are atomic: threads share it without a lock
        self._session: AcmeSession | None = None
        self._session_lock = asyncio.Lock()
        self._closed = False

    @property
    def account_url(self) -> str:
        """The account's URL; empty before the first exchange."""
        return self._session.account_url if self._session is not None else ""

    def close(self) -> None:
        """Take no more calls and close the connections as they become idle."""
        self._closed = True
        self._pool.close()
        while self._idle:
            self._idle.pop().close()

    async def call(
        self,
        exchange: Callable[[AcmeClient], T],
        deadline: Deadline,
        *,
        may_repeat: Callable[[RefusalError], bool] = unavailable,
    ) -> T:
        """Run `exchange` until it succeeds, fails for good, or the deadline leaves no time for another try.

        Raises:
            AcmeError: how it failed last.
        """
        session = await self.session(deadline)
        try:
            return await self._repeat(exchange, session, deadline, may_repeat)
        except AcmeError as error:
            # The CA looked no further than account and signature, so that the exchange can have had no effect (RFC 8555
            # 6.7): who has lost the account makes it again, and who has an old key reads the one that is in force.
            lost = error.is_problem("accountDoesNotExist")
            unsigned = error.is_problem("unauthorized") or error.is_problem("malformed")
            if not lost and not (unsigned and await self._registration.has_another_key(self._pool)):
                raise

        def gone(error: RefusalError) -> bool:
            """What it had of an account that it has lost won't turn up."""
            return lost and isinstance(error, AcmeError) and error.missing

        why = "the CA doesn't know the account any more" if lost else "the account has another key now"
        _log.warning("%s: looking it up again", why, extra={"fields": {"acme_account_url": session.account_url}})
        if self._session is session:
            self._session = None
        found = await self.session(deadline)
        try:
            return await self._repeat(exchange, found, deadline, lambda error: may_repeat(error) and not gone(error))
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
        run = self._exchanges(deadline)
        async with self._alone(deadline):
            if self._session is None:
                self._session = await self._registration.open(run, self._pool)
            elif fresh_directory:
                self._session = replace(self._session, directory=await self._registration.directory(run))
            return self._session

    async def read_directory(self, deadline: Deadline) -> AcmeDirectory:
        """The directory, asked for once. Raises `AcmeError`, `misplaced` if something else is there."""
        return await self._once(lambda client: client.fetch_directory(self._registration.directory_url), None, deadline)

    async def note_directory(self, deadline: Deadline) -> None:
        """Ask for the directory once, for the log. Raises `AcmeError`."""

        async def run(exchange: Callable[[AcmeClient], T], session: AcmeSession | None = None) -> T:
            return await self._once(exchange, session, deadline)

        await self._registration.directory(run)

    async def find_account(self, deadline: Deadline) -> AcmeSession | None:
        """The account, None if there is none yet."""
        async with self._alone(deadline):
            return await self._registration.find(self._exchanges(deadline), self._pool)

    async def roll_over(self, deadline: Deadline) -> AcmeSession:
        """Give the account a new key. Raises as `Registration.roll_over`."""
        session = await self.session(deadline)
        async with self._alone(deadline):
            await self._registration.roll_over(session, self._exchanges(deadline), self._pool)
        return session

    @asynccontextmanager
    async def _alone(self, deadline: Deadline) -> AsyncIterator[None]:
        """One at a time sees to the account, within the deadline."""
        try:
            async with asyncio.timeout(deadline.left.total_seconds()), self._session_lock:
                yield
        except TimeoutError as error:
            raise _too_late() from error

    def _exchanges(self, deadline: Deadline) -> Exchanges:
        async def run(exchange: Callable[[AcmeClient], T], session: AcmeSession | None = None) -> T:
            return await self._repeat(exchange, session, deadline, unavailable)

        return run

    async def _repeat(
        self,
        exchange: Callable[[AcmeClient], T],
        session: AcmeSession | None,
        deadline: Deadline,
        may_repeat: Callable[[RefusalError], bool],
    ) -> T:
        return await repeat(
            lambda: self._once(exchange, session, deadline),
            deadline=deadline,
            backoff=self._repeat_waits,
            rng=self._rng,
            on=AcmeError,
            when=may_repeat,
        )

    async def _once(self, exchange: Callable[[AcmeClient], T], session: AcmeSession | None, deadline: Deadline) -> T:
        try:
            # The worker ends by itself soon after; the waiting ends now. What it sent may still arrive.
            async with asyncio.timeout(deadline.left.total_seconds()):
                return await self._pool.run(self._on_worker, exchange, session, deadline.at)
        except TimeoutError as error:
            raise _too_late() from error

    def _on_worker(self, exchange: Callable[[AcmeClient], T], session: AcmeSession | None, deadline: float) -> T:
        key = self._registration.key
        client = self._idle.pop() if self._idle else self._new_client(key)
        if client.key_sha256 != key.public_key_sha256:
            client.close()
            client = self._new_client(key)
        try:
            client.prepare(session, deadline)
            return exchange(client)
        finally:
            self._idle.append(client)
            if self._closed:
                self.close()


def _too_late() -> AcmeError:
    return AcmeError(Reason.ISSUER_UNAVAILABLE, "no answer in time")
