"""The ACME clients of one account: a bounded pool of workers, the session they share, and what may be repeated."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from certplane.broker.issuers.acme_client import AcmeClient, AcmeSession
from certplane.broker.issuers.acme_network import AcmeError
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.pool import BlockingPool

if TYPE_CHECKING:
    import random

__all__ = ["REPEAT", "AcmeWorkers", "unavailable", "unsent"]

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
        new_client: Callable[[], AcmeClient],
        directory_url: str,
        email: str,
        *,
        size: int,
        rng: random.Random,
        repeat_waits: Backoff = REPEAT,
    ) -> None:
        """Nothing is sent yet.

        Args:
            new_client: makes a worker's client.
            directory_url: the CA's directory.
            email: contact of a new account; may be empty.
            size: exchanges under way at once.
            rng: for the jitter of repeats.
            repeat_waits: between tries of a call that is safe to repeat.
        """
        self._repeat_waits = repeat_waits
        self._new_client, self._directory_url, self._email, self._rng = new_client, directory_url, email, rng
        self._pool = BlockingPool("acme", size)
        self._idle: deque[AcmeClient] = deque()  # append and pop are atomic: threads share it without a lock
        self._session: AcmeSession | None = None
        self._session_lock = asyncio.Lock()
        self._closed = False

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
        session = await self._current_session(deadline)
        try:
            return await self._repeat(exchange, session, deadline, may_repeat)
        except AcmeError as error:
            if not error.is_problem("accountDoesNotExist"):
                raise
        # The CA looked no further than the account, so that the exchange can have had no effect (RFC 8555 6.7).
        _log.warning("the CA doesn't know the account any more: registering its key again", extra=_fields(session))
        if self._session is session:
            self._session = None
        return await self._repeat(exchange, await self._current_session(deadline), deadline, may_repeat)

    async def _current_session(self, deadline: Deadline) -> AcmeSession:
        if self._session is not None:
            return self._session
        try:
            async with asyncio.timeout(deadline.left.total_seconds()), self._session_lock:
                if self._session is None:
                    self._session = await self._open_session(deadline)
                return self._session
        except TimeoutError as error:
            raise _too_late() from error

    async def _open_session(self, deadline: Deadline) -> AcmeSession:
        directory = await self._repeat(
            lambda client: client.fetch_directory(self._directory_url), None, deadline, unavailable
        )
        session = await self._repeat(
            lambda client: client.register(directory, self._email), None, deadline, unavailable
        )
        _log.info("account registered or found at the CA", extra=_fields(session))
        return session

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
        client = self._idle.pop() if self._idle else self._new_client()
        try:
            client.prepare(session, deadline)
            return exchange(client)
        finally:
            self._idle.append(client)
            if self._closed:
                self.close()


def _fields(session: AcmeSession) -> dict[str, dict[str, str]]:
    return {"fields": {"acme_account_url": session.account_url}}


def _too_late() -> AcmeError:
    return AcmeError(Reason.ISSUER_UNAVAILABLE, "no answer in time")
