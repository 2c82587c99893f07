"""The account at the CA: found or made, bound, its contact kept current, its key changed (RFC 8555 7.3).

Rules:

- The CA decides which key the account has. The new key of a change is durable beside the old one (`acme_keeping`)
  before the CA is asked; whoever opens a session while there are two asks the CA which of them it knows, and switches
  to the new one if it is that. So a crash at any moment, or another broker's change, ends with the key that works, and
  never with a second account, which a request for one with the old key would make.
- The old key is kept until the CA has answered to the new one.
- An account that must be bound (7.3.4) is looked for first: bindings of some CAs are good for one account only.
- A contact that can't be updated stops nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_client import AcmeClient, AcmeSession, Binding
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_errors import ACTION_REQUIRED, AcmeError
from certplane.broker.issuers.acme_keeping import AccountKeeper
from certplane.broker.issuers.acme_settling import SETTLING, Settling
from certplane.broker.issuers.acme_signing import SignedRequests
from certplane.errors import ConfigurationError, ProblemDocument, Reason, RefusalError
from certplane.runtime.failpoints import failpoint

T = TypeVar("T")
_log = logging.getLogger(__name__)

_BRIEFLY = timedelta(seconds=10)
"""For how long something else than a directory may be at its URL: a page in front of the CA that passes."""


@dataclass(frozen=True, slots=True)
class ExternalAccount:
    """What binds a new account to a customer of the CA (7.3.4): `read_hmac` reads the MAC key, base64url, at use."""

    kid: str
    read_hmac: Callable[[], Awaitable[str]]
    algorithm: str = "HS256"


class Run(Protocol):
    """Runs an attempt that is safe to repeat until it succeeds or time is up. Raises `AcmeError`."""

    async def __call__(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run it."""
        ...


class Registration:
    """The account of one issuer. Used by one caller at a time, but for `client` and `has_another_key`."""

    def __init__(
        self,
        ca: AcmeCa,
        key: AccountKey,
        *,
        keeper: AccountKeeper | None = None,
        external: ExternalAccount | None = None,
        settling: timedelta = SETTLING,
    ) -> None:
        """Nothing is sent yet.

        Args:
            ca: the CA; its server's `account_email` is the contact, and empty leaves it as it is.
            key: the account's, as last known.
            keeper: keeps the key; without one, it never changes.
            external: what a new account is bound to.
            settling: for how long the CA may not know what it has named itself.
        """
        self.key = key
        self.on_key: Callable[[AccountKey], None] = lambda _: None
        """Hears of another key when it is in use."""
        self._ca, self._keeper, self._external = ca, keeper, external
        self._requests = SignedRequests(ca.http)
        self._settling = Settling(ca.clock, settling)
        self._wrong = Settling(ca.clock, _BRIEFLY)
        self._was_read = False
        self._trouble = False

    def client(self, directory: AcmeDirectory, key: AccountKey | None = None, account_url: str = "") -> AcmeClient:
        """What makes exchanges signed by `key`, or by the account's."""
        return AcmeClient(self._ca, self._requests, self._settling, directory, key or self.key, account_url)

    async def open(self, run: Run) -> AcmeSession:
        """Find the account, or make it, and bring its contact up to date."""
        directory = await self.directory(run)
        await self._settle_key(directory, run)
        try:
            session = await self._register(directory, run)
        except AcmeError as error:
            if error.refusal.reason is Reason.ISSUER_REJECTED:
                # Whatever was wrong, no order of the account gets further: a person is called, once for all orders,
                # and other issuers may do meanwhile.
                said = ProblemDocument(ACTION_REQUIRED, "there is no account to create orders with")
                error.refusal = replace(error.refusal, problems=(*error.refusal.problems, said))
            raise
        what = "made" if session.created else "found"
        fields = {"acme_account_url": session.account_url, "terms_of_service": directory.terms_of_service}
        shown = {name: value for name, value in fields.items() if value}
        _log.info("account %s at the CA, its terms of service agreed to", what, extra={"fields": shown})
        await self._update_contact(session, run)
        return session

    async def find(self, run: Run) -> AcmeSession | None:
        """The account if there is one."""
        directory = await self.directory(run)
        await self._settle_key(directory, run)
        return await self._find(self.key, directory, run)

    async def directory(self, run: Run) -> AcmeDirectory:
        """The directory as it is now.

        What isn't one is a refusal after some seconds, for a person, unless it was one before: then it may be again.
        """
        return await run(self._fetch_directory)

    async def _fetch_directory(self) -> AcmeDirectory:
        url = self._ca.server.directory_url
        try:
            directory = await self._ca.fetch_directory()
        except AcmeError as error:
            if not self._trouble:  # once, not with each try of each order
                self._trouble = True
                _log.warning("the CA's directory can't be read: %s", error.refusal.message)
            if error.misplaced and (self._was_read or self._wrong.missing(url)):
                error.refusal = replace(error.refusal, reason=Reason.ISSUER_UNAVAILABLE, problems=())
            raise
        self._wrong.found(url)
        if self._trouble:
            _log.info("the CA's directory can be read again", extra={"fields": {"url": url}})
        self._was_read, self._trouble = True, False
        return directory

    async def has_another_key(self, than: AccountKey) -> bool:
        """Whether somebody has changed the key meanwhile, or is about to."""
        if self._keeper is None:
            return False
        if self.key.public_key_sha256 != than.public_key_sha256 or await self._kept(self._keeper.pending()) is not None:
            return True
        return (await self._read()).public_key_sha256 != than.public_key_sha256

    async def look_at_key(self, run: Run) -> None:
        """Use the key that is kept, which another broker may have changed; while a change is under way the CA decides.

        The account's URL stays the same, so that a session goes on with it. Raises `AcmeError`.
        """
        if self._keeper is not None and await self._kept(self._keeper.pending()) is None:
            self._use(await self._read())
        else:
            await self._settle_key(await self.directory(run), run)

    async def roll_over(self, session: AcmeSession, run: Run) -> AccountKey:
        """Give the account a new key (7.3.5), which is the key in the file from then on.

        Raises:
            AcmeError: the CA refused it, then nothing is changed; or it can't be told whether it has, then doing it
                again, or opening a session, finds out.
        """
        if self._keeper is None:
            raise RuntimeError("a key that nobody keeps can't be changed")
        keeper, directory = self._keeper, session.directory
        new = await keeper.prepare()
        failpoint("acme.rollover.prepared")
        try:
            await run(lambda: self.client(directory, account_url=session.account_url).change_key(new))
        except AcmeError as error:
            # A repeat after a lost answer is refused: the old key is nobody's by then.
            if await self._find(new, directory, run) is None:
                if error.refusal.reason is Reason.ISSUER_REJECTED:
                    await keeper.settle(new, taken=False)
                raise
        found = await self._find(new, directory, run)
        if found is None or found.account_url != session.account_url:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it does not know the new key yet; change the key again")
        failpoint("acme.rollover.taken")
        await keeper.settle(new, taken=True)
        self._use(new)
        return new

    async def _settle_key(self, directory: AcmeDirectory, run: Run) -> None:
        if self._keeper is None:
            return
        pending = await self._kept(self._keeper.pending())
        if pending is None or await self._find(pending, directory, run) is None:
            self._use(await self._read())
            return
        if self._use(pending):
            _log.warning("the CA has taken a change of the account's key that was under way: the new key is in use")
        try:
            await self._keeper.settle(pending, taken=True)
        except (ConfigurationError, RefusalError) as error:
            # The CA has decided, and says so again to whoever opens the next session.
            _log.warning("the account has a new key, which can't be kept as the only one yet: %s", error)

    def _use(self, key: AccountKey) -> bool:
        """Sign with it from now on; whether that is another one."""
        another = key.public_key_sha256 != self.key.public_key_sha256
        if another:
            self.key = key
            _log.warning(
                "the account's key is another one now", extra={"fields": {"key_sha256": key.public_key_sha256}}
            )
            self.on_key(key)
        return another

    async def _read(self) -> AccountKey:
        if self._keeper is None:
            return self.key
        # A key that was taken away while the broker runs is no reason for another account.
        return await self._kept(self._keeper.find()) or self.key

    async def _kept(self, asking: Awaitable[T]) -> T:
        """What a keeper answers; that it can't is for now, whatever the reason."""
        try:
            return await asking
        except (ConfigurationError, RefusalError) as error:
            message = f"the account's key can't be read: {error}"
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, message, unsent=True) from error

    async def _find(self, key: AccountKey, directory: AcmeDirectory, run: Run) -> AcmeSession | None:
        return await run(self.client(directory, key).find_account)

    async def _register(self, directory: AcmeDirectory, run: Run) -> AcmeSession:
        email = self._ca.server.account_email
        if self._external is None:
            return await run(lambda: self.client(directory).register(email))
        found = await self._find(self.key, directory, run)
        if found is not None:
            return found
        external = self._external
        try:
            hmac = await external.read_hmac()
        except RefusalError as error:
            gone = error.refusal.reason is Reason.DNS_UNAVAILABLE  # what keeps secrets speaks as DNS providers do
            reason = Reason.ISSUER_UNAVAILABLE if gone else Reason.ISSUER_REJECTED
            message = f"the account's binding can't be made: {error.refusal.message}"
            raise AcmeError(reason, message, retry_after=error.refusal.retry_after, unsent=True) from error
        binding = Binding(external.kid, hmac, external.algorithm)
        return await run(lambda: self.client(directory).register(email, binding))

    async def _update_contact(self, session: AcmeSession, run: Run) -> None:
        email = self._ca.server.account_email
        wanted = f"mailto:{email}"
        if not email or session.created or session.contact == (wanted,):
            return
        try:
            await run(lambda: self.client(session.directory, account_url=session.account_url).update_contact(email))
        except AcmeError as error:
            wrong = error.refusal.reason is Reason.ISSUER_REJECTED
            remedy = f"; correct {self._ca.server.section}.account_email" if wrong else ""
            _log.warning("the account's contact can't be updated: %s%s", error.refusal.message, remedy)
        else:
            _log.info("the account's contact is now %s", email)
