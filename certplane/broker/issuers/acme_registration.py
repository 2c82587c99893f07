"""The account at the CA: found or made, bound, its contact kept current, its key changed (RFC 8555 7.3).

Rules:

- The CA decides which key the account has. A change of the key is durable as `<account_key>.next` before the CA is
  asked; whoever opens a session while that file stands asks the CA which of the two it knows, and switches to it if it
  is the new one. So a crash at any moment, or another broker's change, ends with the key that works; and never with a
  second account, which asking for one with the old key would make.
- The key that was replaced stands until the CA has answered to the new one.
- An account that must be bound (7.3.4) is looked for first: bindings of some CAs are good for one account only.
- A contact that can't be updated stops nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_client import ACTION_REQUIRED, AcmeClient, AcmeSession, Binding
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_network import AcmeError
from certplane.broker.issuers.acme_settling import Settling
from certplane.errors import ConfigurationError, ProblemDocument, Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

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


class Exchanges(Protocol):
    """Runs exchanges that are safe to repeat until they succeed or time is up. Raises `AcmeError`."""

    async def __call__(self, exchange: Callable[[AcmeClient], T], session: AcmeSession | None = None) -> T:
        """Run one, without an account if `session` is None."""
        ...


class Registration:
    """The account of one issuer. Used by one caller at a time."""

    def __init__(
        self,
        directory_url: str,
        email: str,
        key: AccountKey,
        *,
        key_file: AccountKeyFile | None = None,
        external: ExternalAccount | None = None,
        clock: Clock,
        section: str,
    ) -> None:
        """Nothing is sent yet.

        Args:
            directory_url: the CA's directory.
            email: the contact; empty leaves it as it is.
            key: the account's, as last known.
            key_file: where the key is; without one, the key never changes.
            external: what a new account is bound to.
            clock: for how long a wrong directory is borne.
            section: the configuration's section of the issuer.
        """
        self.directory_url, self._email, self._key_file, self._external = directory_url, email, key_file, external
        self.key = key
        self._section = section
        self._wrong = Settling(clock, _BRIEFLY)
        self._was_read = False
        self._trouble = False

    async def open(self, run: Exchanges, files: BlockingPool) -> AcmeSession:
        """Find the account, or make it, and bring its contact up to date."""
        directory = await self.directory(run)
        await self._settle_key(directory, run, files)
        try:
            session = await self._register(directory, run)
        except AcmeError as error:
            if error.refusal.reason is Reason.ISSUER_REJECTED:
                # Whatever was wrong, no order of the account gets further: a person is called, once for all orders,
                # and other issuers may do meanwhile.
                said = ProblemDocument(ACTION_REQUIRED, "there is no account to order with")
                error.refusal = replace(error.refusal, problems=(*error.refusal.problems, said))
            raise
        what = "made" if session.created else "found"
        fields = {"acme_account_url": session.account_url, "terms_of_service": directory.terms_of_service}
        shown = {name: value for name, value in fields.items() if value}
        _log.info("account %s at the CA, its terms of service agreed to", what, extra={"fields": shown})
        await self._update_contact(session, run)
        return session

    async def find(self, run: Exchanges, files: BlockingPool) -> AcmeSession | None:
        """The account if there is one."""
        directory = await self.directory(run)
        await self._settle_key(directory, run, files)
        return await self._find(self.key, directory, run)

    async def directory(self, run: Exchanges) -> AcmeDirectory:
        """The directory as it is now.

        What isn't one is a refusal after some seconds, for a person, unless it was one before: then it may be again.
        """
        return await run(self._fetch_directory)

    def _fetch_directory(self, client: AcmeClient) -> AcmeDirectory:
        try:
            directory = client.fetch_directory(self.directory_url)
        except AcmeError as error:
            if not self._trouble:  # once, not with each try of each order
                self._trouble = True
                _log.warning("the CA's directory can't be read: %s", error.refusal.message)
            if error.misplaced and (self._was_read or self._wrong.missing(self.directory_url)):
                error.refusal = replace(error.refusal, reason=Reason.ISSUER_UNAVAILABLE, problems=())
            raise
        self._wrong.found(self.directory_url)
        if self._trouble:
            _log.info("the CA's directory can be read again", extra={"fields": {"url": self.directory_url}})
        self._was_read, self._trouble = True, False
        return directory

    async def has_another_key(self, files: BlockingPool) -> bool:
        """Whether somebody has changed the key meanwhile, or is about to."""
        if self._key_file is None:
            return False
        if await files.run(self._key_file.pending) is not None:
            return True
        return (await self._read(files)).public_key_sha256 != self.key.public_key_sha256

    async def roll_over(self, session: AcmeSession, run: Exchanges, files: BlockingPool) -> AccountKey:
        """Give the account a new key (7.3.5), which is the key in the file from then on.

        Raises:
            AcmeError: the CA refused it, then nothing is changed; or it can't be told whether it has, then doing it
                again, or opening a session, finds out.
        """
        if self._key_file is None:
            raise RuntimeError("a key without a file can't be changed")
        key_file, directory = self._key_file, session.directory
        new = await files.run(key_file.prepare)
        try:
            await run(lambda client: client.change_key(new), session)
        except AcmeError as error:
            # A repeat after a lost answer is refused: the old key is nobody's by then.
            if await self._find(new, directory, run) is None:
                if error.refusal.reason is Reason.ISSUER_REJECTED:
                    await files.run(key_file.discard)
                raise
        found = await self._find(new, directory, run)
        if found is None or found.account_url != session.account_url:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it does not know the new key yet; change the key again")
        await files.run(key_file.confirm)
        self.key = new
        return new

    async def _settle_key(self, directory: AcmeDirectory, run: Exchanges, files: BlockingPool) -> None:
        key_file = self._key_file
        if key_file is None:
            return
        pending = await files.run(key_file.pending)
        if pending is not None and await self._find(pending, directory, run) is not None:
            await files.run(key_file.confirm)
            _log.warning("a change of the account's key had been cut off after the CA took it: it is completed now")
        self.key = await self._read(files)

    async def _read(self, files: BlockingPool) -> AccountKey:
        key_file = self._key_file
        if key_file is None or not await files.run(lambda: key_file.exists):
            return self.key  # a file that was taken away while the broker runs is no reason for another account
        try:
            return await files.run(key_file.load)
        except ConfigurationError as error:
            raise AcmeError(
                Reason.ISSUER_UNAVAILABLE, f"the account's key can't be read: {error}", unsent=True
            ) from error

    async def _find(self, key: AccountKey, directory: AcmeDirectory, run: Exchanges) -> AcmeSession | None:
        return await run(lambda client: client.find_account(directory, key))

    async def _register(self, directory: AcmeDirectory, run: Exchanges) -> AcmeSession:
        if self._external is None:
            return await run(lambda client: client.register(directory, self._email))
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
        return await run(lambda client: client.register(directory, self._email, binding))

    async def _update_contact(self, session: AcmeSession, run: Exchanges) -> None:
        wanted = f"mailto:{self._email}"
        if not self._email or session.created or session.contact == (wanted,):
            return
        try:
            await run(lambda client: client.update_contact(self._email), session)
        except AcmeError as error:
            wrong = error.refusal.reason is Reason.ISSUER_REJECTED
            remedy = f"; correct {self._section}.account_email" if wrong else ""
            _log.warning("the account's contact can't be updated: %s%s", error.refusal.message, remedy)
        else:
            _log.info("the account's contact is now %s", self._email)
