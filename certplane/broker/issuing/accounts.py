"""The accounts' rows for the issuing process, which has no database: it asks the broker.

What crosses is sealed. The broker reads no seal secret, so that the keys are in the issuing process alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from typing_extensions import override

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AccountRows
from certplane.broker.issuing import messages as m
from certplane.errors import Reason, Refusal, RefusalError

_logger = logging.getLogger(__name__)

_UNREACHABLE = "the broker's database can't be reached by its issuing process"


class AskedAccounts(AccountRows):
    """In the child: `AccountRows` by questions to the broker, which answers each or ends."""

    def __init__(self, send: Callable[[m.ToBroker], None]) -> None:
        """`send` sends a message."""
        self._send = send
        self._last = 0
        self._waiting: dict[int, asyncio.Future[m.AccountAnswer]] = {}

    @override
    async def find(self, issuer: str, directory_url: str) -> Account | None:
        return await self._ask(lambda number: m.FindAccount(number, issuer, directory_url))

    @override
    async def change(self, before: Account | None, after: Account) -> Account:
        standing = await self._ask(lambda number: m.ChangeAccount(number, before, after))
        if standing is None:
            raise RefusalError(Reason.STORE_UNAVAILABLE, _UNREACHABLE)
        return standing

    def take(self, answer: m.AccountAnswer) -> None:
        """An answer has come; who asked may have gone."""
        waiting = self._waiting.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _ask(self, question: Callable[[int], m.FindAccount | m.ChangeAccount]) -> Account | None:
        self._last = number = self._last + 1
        waiting: asyncio.Future[m.AccountAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._send(question(number))
            answer = await waiting
        finally:
            del self._waiting[number]
        if answer.refusal is not None:
            raise RefusalError.of(answer.refusal)
        return answer.account


class AccountAnswers:
    """In the broker: answers what its issuing processes ask, and hears which keys they use."""

    def __init__(self, *, awaited: bool = False) -> None:
        """There is no database yet; `awaited`: no process is to start before there is, since it would ask for a key."""
        self._opened = asyncio.Event()
        if not awaited:
            self._opened.set()
        self._rows: AccountRows | None = None
        self._on_key: Callable[[str, str], None] = lambda _issuer, _sha256: None
        self._keys: dict[str, str] = {}
        self._known: dict[tuple[str, str], Account | None] = {}

    def open(self, rows: AccountRows, on_key: Callable[[str, str], None]) -> None:
        """The database is there: questions are answered from now on.

        `on_key` hears the issuer and the SHA-256 of the key that its account has, also of those that were told before.
        """
        self._rows, self._on_key = rows, on_key
        self._opened.set()
        for issuer, sha256 in self._keys.items():
            on_key(issuer, sha256)

    async def until_open(self) -> None:
        """Wait for the database, if it is awaited."""
        await self._opened.wait()

    def take_keys(self, keys: Mapping[str, str]) -> None:
        """The issuers' accounts have these keys (SHA-256), as the issuing process says."""
        self._keys.update(keys)
        for issuer, sha256 in keys.items():
            self._on_key(issuer, sha256)

    async def answer(self, question: m.FindAccount | m.ChangeAccount) -> m.AccountAnswer:
        """What the rows say. While the database is away, what was found last: the CA decides about keys anyway."""
        try:
            return m.AccountAnswer(question.number, await self._answer(question), None)
        except RefusalError as error:
            match question:
                case m.FindAccount() if (which := (question.issuer, question.directory_url)) in self._known:
                    return m.AccountAnswer(question.number, self._known[which], None)
                case _:
                    return m.AccountAnswer(question.number, None, error.refusal)
        except Exception:  # a bug, or a store that is just being closed: who asked must not wait for ever
            _logger.exception("a question of the issuing process about an account failed unexpectedly")
            refusal = Refusal(Reason.STORE_UNAVAILABLE, _UNREACHABLE)
            return m.AccountAnswer(question.number, None, refusal)

    async def _answer(self, question: m.FindAccount | m.ChangeAccount) -> Account | None:
        if self._rows is None:
            raise RefusalError(Reason.STORE_UNAVAILABLE, _UNREACHABLE)
        found: Account | None
        match question:
            case m.FindAccount():
                which = question.issuer, question.directory_url
                found = await self._rows.find(*which)
            case m.ChangeAccount():
                which = question.after.issuer, question.after.directory_url
                found = await self._rows.change(question.before, question.after)
        self._known[which] = found
        return found
