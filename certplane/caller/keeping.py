"""Keeps one certificate fresh: asks when it is due, at once where news say so, and again when that fails.

The certificate in use stays in use whatever fails, for as long as it is valid. The key is kept before it is asked for,
and a request that was interrupted goes on as it was. While there is no stream of news the broker is asked every few
hours what has become of the certificate; the names that policy gives are asked for as often in any case.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.caller.news import AskAgain
from certplane.caller.ordering import ORDER_PATIENCE, Wanted, names_for
from certplane.caller.schedule import Due, Held, RenewalCause, due, retry_wait
from certplane.caller.stored import CertificateStore, Pending, new_pending
from certplane.caller.values import Certificate, CertificateNews, Identity, IssuedCertificate
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.pki.keys import KeyType
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.finishing import uninterrupted
from certplane.runtime.pool import BlockingPool

FAILPOINTS: Final = ("keeper.ask.before", "keeper.ask.after")
"""Between those of `folder`: the key is kept, the certificate isn't."""

_LOOK: Final = timedelta(minutes=15)
"""The longest sleep: the wall clock may be set, or the machine be suspended, meanwhile."""
_POLL: Final = timedelta(hours=3)
"""How often the broker is asked; up to a quarter more or less by chance."""
_SPREAD: Final = timedelta(seconds=10)
"""Over so long those spread who are told at once that asking again may succeed."""
_FIRST: Final = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=30), floor=timedelta(milliseconds=500))
"""Between tries while a program waits for its first certificate."""

Changed = Callable[[IssuedCertificate], Awaitable[object] | object]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where certificates come from: a broker, by calls that may fail with any `CertplaneError`."""

    async def identity(self) -> Identity:
        """Who the caller is, and what policy gives it."""
        ...

    async def obtain(self, wanted: Wanted, timeout: timedelta = ORDER_PATIENCE) -> Certificate:
        """The certificate of a request, with its PEM, checked against key and names. Safe to repeat."""
        ...

    async def certificate(self, certificate_id: str) -> Certificate:
        """A certificate as the broker knows it now."""
        ...


class News(Protocol):
    """What becomes of certificates, as it happens."""

    @property
    def live(self) -> bool:
        """Whether news arrive now."""
        ...

    @property
    def known(self) -> Mapping[str, CertificateNews]:
        """The latest of each certificate, by its id."""
        ...

    def listen(self, listener: Callable[[CertificateNews | AskAgain], None]) -> Callable[[], None]:
        """Have `listener` called, on the event loop, until what is returned is called."""
        ...


class Keeping:
    """One certificate. On one event loop; `start` once, then `close`.

    Args:
        source: Gives certificates.
        news: Says what becomes of them.
        store: Keeps the certificate and its key.
        profile: The policy profile.
        dns_names: The names to ask for; those of the profile if empty.
        key_type: What new keys are.
        clock: Says what is due.
        rng: Spreads.
    """

    def __init__(
        self,
        source: Source,
        news: News,
        store: CertificateStore,
        *,
        profile: str,
        dns_names: tuple[str, ...] = (),
        key_type: KeyType = KeyType.EC_P256,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._source = source
        self._feed = news
        self._store = store
        self._profile = profile
        self._fixed_names = self._names = dns_names
        self._key_type = key_type
        self._clock = clock
        self._rng = rng
        self._disk = BlockingPool("certplane-keeper", 1)
        self._current: IssuedCertificate | None = None
        self._pending: Pending | None = None
        self._news: CertificateNews | None = None
        self._asked = False
        self._retry_at = float("-inf")
        self._wake, self._look = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed: list[Changed] = []
        self._stop_listening: Callable[[], None] | None = None
        self.error: CertplaneError | None = None
        """Why the last try failed; None after one that succeeded."""

    @property
    def current(self) -> IssuedCertificate:
        """The certificate in use.

        Raises:
            RuntimeError: it wasn't started.
        """
        if self._current is None:
            raise RuntimeError("the keeper is not open: use `async with CertificateKeeper(...)`")
        return self._current

    @property
    def next_renewal(self) -> datetime:
        """When it is renewed, as far as is known now; not in the future where that is at once."""
        return self._plan(self._clock.now()).time

    def on_change(self, changed: Changed) -> Callable[[], None]:
        """Have `changed` called with each certificate that comes after the start's, in the order of adding."""
        self._changed.append(changed)

        def end() -> None:
            if changed in self._changed:
                self._changed.remove(changed)

        return end

    def renew(self) -> None:
        """Renew now."""
        self._asked = True
        self._again()

    async def start(self, patience: timedelta) -> None:
        """Have a certificate that is in force, then keep it fresh until `close`.

        Args:
            patience: How long to wait for a first one, where none is kept that is valid.

        Raises:
            CertplaneError: why there is none: a refusal that no waiting mends, or what failed last.
        """
        try:
            await self._disk.run(self._store.open)
            self._current, self._pending = await self._disk.run(self._store.load)
            self._stop_listening = self._feed.listen(self._hear)
            if self._current is None or self._clock.now() >= self._current.certificate.not_after:
                await self._first(patience)
            self._take_news()
            self._tasks = [asyncio.create_task(self._renewing()), asyncio.create_task(self._polling())]
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the keeping. What is half-way done on disk is finished; an order goes on at the broker."""
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await uninterrupted(self._disk.run(self._store.close))
        self._disk.close()

    # When.

    def _plan(self, now: datetime) -> Due:
        if self._current is None:
            return Due(now, RenewalCause.FIRST)
        found = due(Held(self.current.certificate, self._news, self._names, self._phase_key), now)
        return Due(now, RenewalCause.ASKED) if self._asked and found.time > now else found

    @property
    def _phase_key(self) -> str:
        """Processes that got their certificates together are not due together: each has a key of its own."""
        return self.current.certificate.public_key_sha256

    async def _renewing(self) -> None:
        failures = 0
        while True:
            now = self._clock.now()
            plan = self._plan(now)
            hold = timedelta(seconds=max(self._retry_at - self._clock.monotonic(), 0))
            left = max(plan.time - now, hold)
            if left > timedelta():
                await self._rest(min(left, _LOOK))
                continue
            try:
                await self._renew(plan.cause)
            except CertplaneError as error:
                failures += 1
                self._failed(error, failures)
            except Exception as error:
                failures += 1
                logger.exception("the renewal of profile %s failed by a bug", self._profile)
                self._failed(OperationError(f"a bug: {error!r}"), failures)
            else:
                failures = 0

    def _failed(self, error: CertplaneError, failures: int) -> None:
        self.error = error
        wait = retry_wait(failures, error.retry_after, self._rng)
        self._retry_at = self._clock.monotonic() + wait.total_seconds()
        until = "" if self._current is None else f"; the one in use ends {self.current.certificate.not_after:%F %TZ}"
        logger.warning("no new certificate of profile %s: %s; next try in %s%s", self._profile, error, wait, until)

    async def _rest(self, span: timedelta) -> None:
        """Wait, or until something has changed."""
        sleeping = asyncio.ensure_future(self._clock.sleep(span))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
        self._wake.clear()

    # News.

    def _hear(self, news: CertificateNews | AskAgain) -> None:
        if isinstance(news, AskAgain):
            self._again(_SPREAD * self._rng.random())
            self._look.set()
        elif self._current is not None and news.certificate_id == self.current.certificate.certificate_id:
            self._take(news)

    def _take(self, news: CertificateNews) -> None:
        before, self._news = self._news, news
        wanted = (news.renewal_request_id, news.revoke_time)
        if wanted != ("", None) and (before is None or wanted != (before.renewal_request_id, before.revoke_time)):
            self._again()
        self._wake.set()

    def _take_news(self) -> None:
        """What was told of the certificate before it was the one in use."""
        self._news = None
        if (news := self._feed.known.get(self.current.certificate.certificate_id)) is not None:
            self._take(news)

    def _again(self, after: timedelta = timedelta()) -> None:
        """Don't wait longer than this for the next try."""
        self._retry_at = min(self._retry_at, self._clock.monotonic() + after.total_seconds())
        self._wake.set()

    async def _polling(self) -> None:
        while True:
            try:
                await self._poll()
            except CertplaneError as error:
                logger.info("the broker doesn't say what has become of profile %s: %s", self._profile, error)
            self._look.clear()
            sleeping = asyncio.ensure_future(self._clock.sleep(_POLL * (0.75 + 0.5 * self._rng.random())))
            looking = asyncio.ensure_future(self._look.wait())
            try:
                await asyncio.wait({sleeping, looking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                looking.cancel()

    async def _poll(self) -> None:
        if not self._fixed_names:
            await self._known_names()
            self._wake.set()
        if not self._feed.live:
            certificate = self.current.certificate
            now = await self._source.certificate(certificate.certificate_id)
            if certificate is self.current.certificate and not self._feed.live:
                self._take(
                    CertificateNews(
                        certificate_id=certificate.certificate_id,
                        profile=certificate.profile,
                        renew_time=now.renew_time,
                        revoke_time=now.revoke_time,
                    )
                )

    # Renewing.

    async def _first(self, patience: timedelta) -> None:
        until = self._clock.monotonic() + patience.total_seconds()
        failures = 0
        while True:
            try:
                left = timedelta(seconds=max(until - self._clock.monotonic(), 1))
                await self._renew(RenewalCause.FIRST if self._current is None else RenewalCause.EXPIRED, left)
                return
            except CertplaneError as error:
                failures += 1
                self.error = error
                final = isinstance(error, RefusalError) and error.retry_after is None
                wait = max(_FIRST.wait(failures, self._rng), error.retry_after or timedelta())
                if final or self._clock.monotonic() + wait.total_seconds() > until:
                    raise
                logger.info("no certificate of profile %s yet: %s; trying again in %s", self._profile, error, wait)
            await self._clock.sleep(wait)

    async def _renew(self, cause: RenewalCause, timeout: timedelta = ORDER_PATIENCE) -> None:
        logger.info("asking for a certificate of profile %s: %s", self._profile, cause)
        names = self._fixed_names or await self._known_names()
        left = self._pending
        if left is None or left.wanted.dns_names != names:
            await self._begin(names)
        try:
            certificate = await self._obtain(timeout)
        except RefusalError as error:
            if error.reason is not Reason.KEY_REUSED:
                raise
            # The key was blocked while the order was under way, or belongs to an earlier try: a new one is not.
            await self._begin(names)
            certificate = await self._obtain(timeout)
        assert self._pending is not None
        await uninterrupted(self._put(IssuedCertificate(certificate, self._pending.private_key_pem)))

    async def _begin(self, names: tuple[str, ...]) -> None:
        replaces = "" if self._current is None else self.current.certificate.certificate_id
        pending = new_pending(self._profile, names, replaces=replaces, key_type=self._key_type)
        await self._disk.run(self._store.begin, pending)
        self._pending = pending

    async def _obtain(self, timeout: timedelta) -> Certificate:
        assert self._pending is not None
        failpoint("keeper.ask.before")
        certificate = await self._source.obtain(self._pending.wanted, timeout)
        failpoint("keeper.ask.after")
        return certificate

    async def _known_names(self) -> tuple[str, ...]:
        self._names = names_for(await self._source.identity(), self._profile)
        return self._names

    async def _put(self, issued: IssuedCertificate) -> None:
        await self._disk.run(self._store.put, issued)
        self._current, self._pending = issued, None
        self._asked, self.error, self._retry_at = False, None, float("-inf")
        self._take_news()
        certificate = issued.certificate
        logger.info(
            "profile %s has certificate %s until %s", self._profile, certificate.serial_number, certificate.not_after
        )
        for changed in list(self._changed) if self._tasks else ():  # what `start` brings is no change
            try:
                done = changed(issued)
                if isinstance(done, Awaitable):
                    await done
            except Exception:
                logger.exception("a callback for the new certificate of profile %s failed", self._profile)
